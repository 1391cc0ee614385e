"""Raw rows of a table in memory: of polars, pandas, pyarrow or numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow as pa

from equipoise.data.tables.agreement import Part
from equipoise.data.tables.faults import check_names_differ
from equipoise.data.tables.files import Source
from equipoise.errors import DataError

__all__ = ["open_frame"]


def open_frame(table: Any, /) -> Source:
    """Open a table in memory: of polars, pandas or pyarrow, a dict of columns, or a structured array.

    Raises:
        DataError: it is no table, has a column name twice, or a column cannot be converted.
    """
    name = "The table"
    if isinstance(table, pl.LazyFrame):
        with _converting(name):
            return Source((Part(name, None, 0, dict(table.collect_schema())),), table)
    if not isinstance(table, pl.DataFrame):
        check_names_differ(name, _column_names(table))
        with _converting(name):
            table = _converted(table)
    return Source((Part(name, None, table.height, dict(table.schema)),), table.lazy())


def _column_names(table: Any) -> list[str]:
    """Return the names of the columns of a table of pandas or pyarrow."""
    return [str(name) for name in (table.columns if _is_pandas(table) else getattr(table, "column_names", []))]


def _is_pandas(table: Any) -> bool:
    return hasattr(table, "iloc") and hasattr(table, "columns")  # a single column has no columns


def _converted(table: Any) -> pl.DataFrame:
    if hasattr(table, "iloc") and not _is_pandas(table):
        raise TypeError("found a Series")
    if _is_pandas(table):  # whose NaN are missing values
        return pl.from_pandas(table)
    is_structured = getattr(getattr(table, "dtype", None), "names", None) is not None
    if hasattr(table, "__arrow_c_stream__") or isinstance(table, Mapping) or is_structured:
        return pl.DataFrame(table)
    raise TypeError(f"found a {type(table).__name__}")


@contextmanager
def _converting(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, pl.exceptions.PolarsError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name} cannot be read: {error}. Expected a table of polars, pandas or pyarrow, a dict of columns, or a "
            "structured array, each column with values of one type."
        ) from error
