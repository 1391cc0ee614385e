"""Rows gathered ahead of their use: a thread makes the next block of batches while a step is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

from equipoise.schema import Batch

__all__ = ["ahead", "batches_of_blocks", "spans"]

Made = TypeVar("Made")

# A block of several batches: each call from the thread takes turns with the training for Python's lock.
_BLOCK_BYTES: Final = 1 << 22


def ahead(calls: Iterable[Callable[[], Made]], /) -> Iterator[Made]:
    """Yield the results of calls in turn, while a thread makes the next one.

    An exception of a call is raised where its result would be yielded.

    Example:
        >>> from functools import partial
        >>> list(ahead(partial(pow, 2, n) for n in range(4)))
        [1, 2, 4, 8]
    """
    upcoming = iter(calls)
    first = next(upcoming, None)
    if first is None:
        return
    made = first()  # here, since the start of a thread would delay it
    with ThreadPoolExecutor(1, thread_name_prefix="equipoise-read") as pool:
        for call in upcoming:
            under_way = pool.submit(call)
            yield made
            made = under_way.result()
        yield made


def spans(first: int, last: int, batch_size: int, row_bytes: int, /) -> Iterator[tuple[int, int]]:
    """Cut the rows from ``first`` to ``last`` into blocks that end at multiples of ``batch_size``.

    The first block ends with its first batch, since a training waits for it; each further one has twice the batches,
    up to 4 MiB.

    Example:
        >>> list(spans(6, 40, 4, 2**18))
        [(6, 8), (8, 16), (16, 32), (32, 40)]
    """
    most = max(1, _BLOCK_BYTES // (batch_size * row_bytes))
    batches = 1
    while first < last:
        stop = min((first // batch_size + batches) * batch_size, last)
        yield first, stop
        first, batches = stop, min(2 * batches, most)


def batches_of_blocks(blocks: Iterable[Batch], batch_size: int, /) -> Iterator[Batch]:
    """Yield batches of ``batch_size`` rows from blocks of any number of rows, at the end one with those that are left.

    A batch within one block shares its memory.
    """
    parts: list[Batch] = []
    missing = batch_size
    for block in blocks:
        at = 0
        while at < len(block):
            stop = min(at + missing, len(block))
            parts.append(block[at:stop])
            missing -= stop - at
            at = stop
            if not missing:
                yield _joined(parts)
                parts, missing = [], batch_size
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    importance = [part.importance for part in parts if part.importance is not None]
    return Batch(
        torch.cat([part.categorical for part in parts]),
        torch.cat([part.numeric for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.weight for part in parts]),
        torch.cat(importance) if importance else None,
    )
