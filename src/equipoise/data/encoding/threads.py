"""Work on several features of a block at the same time: numpy and polars release the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import polars as pl

__all__ = ["for_each"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEW_ROWS: Final = 1 << 14  # threads cost more than they save


def for_each(function: Callable[[Item], Result], items: Iterable[Item], rows: int) -> list[Result]:
    """Return the results in the order of the items; of several errors raise that of the first item."""
    if rows < _FEW_ROWS:
        return [function(item) for item in items]
    with ThreadPoolExecutor(pl.thread_pool_size()) as threads:
        return list(threads.map(function, items))
