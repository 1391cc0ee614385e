"""Raw rows of files or of a table in memory: opened, checked to agree with each other, read in blocks when needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.data.tables.agreement import Part, check_columns, common_type
from equipoise.data.tables.config import FileFormat
from equipoise.data.tables.faults import check_names_differ
from equipoise.data.tables.locations import Location, find_files
from equipoise.data.tables.text_files import as_parquet
from equipoise.errors import DataError

__all__ = ["BLOCK_ROWS", "Source", "Table", "open_files", "open_locations", "reading"]

BLOCK_ROWS: Final = 1 << 17
"""Rows that are read at once."""


@dataclass(frozen=True)
class Source:
    """Files that have been opened, or a table in memory; no rows are read yet.

    Attributes:
        parts: the files, in order.
        memory: the table, if there are no files.
    """

    parts: tuple[Part, ...]
    memory: pl.LazyFrame | None = None

    @property
    def types(self) -> Mapping[str, pl.DataType]:
        """The columns of the first file, with their types."""
        return self.parts[0].types

    def table(self, wanted: Mapping[str, str] | None = None, /) -> Table:
        """Return the rows with some columns.

        Args:
            wanted: the columns, each with the key of the settings that names it; None: all of the first file.

        Raises:
            DataError: a file lacks a column, or the files do not agree on its type.
        """
        wanted = dict.fromkeys(self.types, "") if wanted is None else wanted
        for part in self.parts:
            check_columns(part.name, part.types, wanted)
        if self.memory is not None:
            frame = self.memory.select(list(wanted)).collect()
            name = self.parts[0].name
            return Table((Part(name, None, frame.height, dict(frame.schema)),), dict(frame.schema), frame)
        return Table(self.parts, {name: common_type(name, self.parts) for name in wanted})


@dataclass(frozen=True)
class Table:
    """Raw rows in a fixed order.

    Attributes:
        parts: the files, in order.
        types: the types of the columns, which all parts are brought to.
        memory: the rows, if they are in memory.
    """

    parts: tuple[Part, ...]
    types: Mapping[str, pl.DataType]
    memory: pl.DataFrame | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self._ends[-1]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(part.rows for part in self.parts))

    @property
    def frame(self) -> pl.LazyFrame:
        """All rows, in order, as a query that reads nothing yet."""
        if self.memory is not None:
            return self.memory.lazy()
        return pl.concat(
            self._selected(pl.scan_parquet(part.path, glob=False, hive_partitioning=False), part, tuple(self.types))
            for part in self.parts
            if part.path is not None
        )

    def place(self, row: int) -> str:
        """Return where a row stands: ``row 17 (counted from 0) of logs/a.csv``."""
        i = bisect_right(self._ends, row)
        return f"row {row - (self._ends[i - 1] if i else 0)} (counted from 0) of {self.parts[i].name}"

    def blocks(self, columns: Sequence[str], /, *, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        """Yield all rows in order, about ``rows`` at a time, with some of the columns.

        Raises:
            DataError: a file is damaged.
        """
        first = 0
        if self.memory is not None:
            for begin in range(0, self.memory.height, rows):
                yield Block(self.memory[begin : begin + rows].select(columns), begin, self.parts[0].name, begin)
            return
        for part in self.parts:
            stored = [name for name in columns if name not in part.partition]
            within = 0
            with reading(part.name), pq.ParquetFile(part.path) as file:
                for batch in file.iter_batches(rows, columns=stored):
                    # a column of its own keeps the number of rows where all columns are those of the folders
                    block = pl.DataFrame({"": pl.repeat(None, batch.num_rows, eager=True)})
                    block = block.hstack(pl.DataFrame(batch).get_columns())
                    yield Block(self._selected(block.lazy(), part, columns).collect(), first, part.name, within)
                    within += batch.num_rows
                    first += batch.num_rows

    def check_readable(self) -> None:
        """Read everything, to find the file that a failed query does not name.

        Raises:
            DataError: a file is damaged.
        """
        for _ in self.blocks(tuple(self.types)):
            pass

    def _selected(self, frame: pl.LazyFrame, part: Part, columns: Sequence[str]) -> pl.LazyFrame:
        """Return the columns in the common types, those that the folders state included."""
        stated = [pl.lit(part.partition[name]).alias(name) for name in columns if name in part.partition]
        return frame.with_columns(stated).select(pl.col(name).cast(self.types[name]) for name in columns)


@dataclass(frozen=True)
class Block:
    """Rows that were read at once.

    Attributes:
        first_row: the number of the first of them in the table.
        file: the file that they come from.
        first_row_of_file: the number of the first of them in that file.
    """

    frame: pl.DataFrame
    first_row: int
    file: str
    first_row_of_file: int


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn the errors of a damaged file into one that names it.

    Raises:
        DataError: the block failed to read.
    """
    try:
        yield
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        said = str(error).partition("\n")[0]
        raise DataError(
            f"{name} cannot be read as Parquet: it is cut off, still being written, or damaged ({said}). Write it "
            "again."
        ) from error


def open_files(
    files: Sequence[str],
    /,
    *,
    file_format: FileFormat | None = None,
    separator: str = "",
    null_values: Sequence[str] = ("", "NA", "NULL"),
) -> Source:
    """Open files, without reading the rows of Parquet; text files are converted to Parquet once.

    Args:
        files: files, globs, folders or URLs.
        file_format: the format, if the endings do not say it.
        separator: between the fields of text files: a comma, or a tab for TSV, if empty.
        null_values: texts that stand for a missing value in text files.

    Raises:
        DataError: there is no such file, or a file is damaged.
    """
    return open_locations(find_files(files, file_format=file_format), separator=separator, null_values=null_values)


def open_locations(locations: Sequence[Location], /, *, separator: str, null_values: Sequence[str]) -> Source:
    """Open files that have been found, see :func:`open_files`."""
    parts = []
    for location in locations:
        path = location.path
        if location.format != "parquet":
            between = separator or ("\t" if location.format == "tsv" else ",")
            path = as_parquet(path, location.name, separator=between, null_values=null_values)
        parts.append(_opened(location, path))
    return Source(tuple(parts))


def _opened(location: Location, path: Path) -> Part:
    with reading(location.name):
        with pq.ParquetFile(path) as file:
            check_names_differ(location.name, file.schema_arrow.names)
            rows = file.metadata.num_rows
        types = dict(pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema())
    partition = {name: _value(text) for name, text in location.partition if name not in types}
    types |= {name: _type_of(value) for name, value in partition.items()}
    return Part(location.name, path, rows, types, partition, location.format != "parquet")


def _value(text: str | None) -> str | int | None:
    """Return a text of a folder's name as a whole number where that gives the same text back."""
    return int(text) if text is not None and text.isdecimal() and str(int(text)) == text else text


def _type_of(value: str | int | None) -> pl.DataType:
    return pl.Null() if value is None else pl.Int64() if isinstance(value, int) else pl.String()
