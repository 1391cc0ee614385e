"""The columns of a part: one Parquet column per feature, named after it, so that any reader of Parquet can use them.

Ids are int32, numbers float32, labels float32 under the names of their tasks. A feature of several values per row is a
fixed-size list. ``row.weight`` and ``row.importance`` are float32, ``key.NAME`` is int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.data.dataset import Split
from equipoise.data.stream.manifest import About
from equipoise.errors import DataError
from equipoise.schema import Categories, Vector

__all__ = ["Column", "Extent", "Layout", "rows_per_group"]

_GROUP_BYTES: Final = 2**24
_GROUP_ROWS: Final = 2**16


@dataclass(frozen=True)
class Column:
    """One Parquet column: its place among the columns of a matrix."""

    name: str
    type: Any
    width: int | None = None

    @property
    def field(self) -> pa.Field:
        """The field in Arrow's schema."""
        item = pa.field("item", self.type, nullable=False)
        return pa.field(self.name, self.type if self.width is None else pa.list_(item, self.width), nullable=False)

    def pack(self, values: NDArray[Any]) -> pa.Array:
        """Return values, shape [rows, width or 1], as an array of Arrow."""
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return flat if self.width is None else pa.FixedSizeListArray.from_arrays(flat, type=self.field.type)

    def unpack(self, column: pa.ChunkedArray, into: NDArray[Any]) -> None:
        """Copy a column into a matrix, shape [rows, width or 1]."""
        row = 0
        for chunk in column.chunks:
            values = chunk if self.width is None else chunk.flatten()
            into[row : row + len(chunk)] = values.to_numpy().reshape(len(chunk), -1)
            row += len(chunk)


@dataclass(frozen=True)
class Extent:
    """The rows from ``start`` to ``stop`` of a row group of a file."""

    path: Path
    group: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Layout:
    """The Parquet columns of a data set, and the way between them and matrices."""

    def __init__(self, about: About) -> None:
        schema = about.columns
        ids, floats = pa.int32(), pa.float32()
        self.categorical = [
            Column(feature.name, ids, feature.length if isinstance(feature, Categories) else None)
            for feature in schema.categorical
        ]
        self.numeric = [
            Column(feature.name, floats, feature.width if isinstance(feature, Vector) else None)
            for feature in schema.numeric
        ]
        self.labels = [Column(task, floats) for task in schema.task_names]
        self.weight = [Column("row.weight", floats)]
        self.importance = [Column("row.importance", floats)] if about.importance else []
        self.keys = {key: Column(f"key.{key}", pa.int64()) for key in about.keys}
        names = [column.name for column in self._columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"The names {', '.join(twice)} are kept for columns of prepared data: rename the feature.")

    @property
    def _columns(self) -> list[Column]:
        batch = [*self.categorical, *self.numeric, *self.labels, *self.weight, *self.importance]
        return [*batch, *self.keys.values()]

    @property
    def row_bytes(self) -> int:
        """The bytes that a row takes in memory."""
        return sum((column.width or 1) * column.type.bit_width // 8 for column in self._columns)

    @property
    def arrow_schema(self) -> pa.Schema:
        """The schema of a part."""
        return pa.schema([column.field for column in self._columns])

    def table(self, split: Split, /) -> pa.Table:
        """Return rows as a table of Arrow.

        Raises:
            DataError: the rows lack a key or the importance, or have one too many.
        """
        for what, found, expected in (
            ("keys", sorted(split.keys), sorted(self.keys)),
            ("importance", split.importance is not None, bool(self.importance)),
        ):
            if found != expected:
                raise DataError(f"Expected the {what} of rows to be {expected}, found {found}.")
        importance = split.weight.new_empty(0) if split.importance is None else split.importance
        sources = [
            (self.categorical, split.categorical), (self.numeric, split.numeric), (self.labels, split.labels),
            (self.weight, split.weight[:, None]),
            (self.importance, importance[:, None]),
            *(([column], split.keys[key][:, None]) for key, column in self.keys.items()),
        ]  # fmt: skip
        arrays = []
        for columns, matrix in sources:
            first, values = 0, matrix.numpy()
            for column in columns:
                arrays.append(column.pack(values[:, first : first + (column.width or 1)]))
                first += column.width or 1
        return pa.table(arrays, schema=self.arrow_schema)

    def rows(self, extents: Sequence[Extent], /) -> Split:
        """Read the columns of batches, without keys."""
        kinds = [self.categorical, self.numeric, self.labels, self.weight, self.importance]
        categorical, numeric, labels, weight, importance = _read(kinds, extents)
        return Split(categorical, numeric, labels, weight[:, 0], importance[:, 0] if self.importance else None)

    def column(self, column: Column, extents: Sequence[Extent], /) -> Tensor:
        """Read one column, shape [rows]."""
        return _read([[column]], extents)[0][:, 0]


def _read(kinds: Sequence[Sequence[Column]], extents: Sequence[Extent]) -> list[Tensor]:
    """Return a matrix for each list of columns of one type."""
    rows = sum(map(len, extents))
    matrices = []
    for columns in kinds:
        dtype = columns[0].type.to_pandas_dtype() if columns else np.float32
        matrices.append(np.empty((rows, sum(column.width or 1 for column in columns)), dtype))
    names = [column.name for columns in kinds for column in columns]
    row = 0
    for extent in extents:
        table = _read_group(extent.path, extent.group, names).slice(extent.start, len(extent))
        for columns, matrix in zip(kinds, matrices, strict=True):
            first = 0
            for column in columns:
                width = column.width or 1
                column.unpack(table[column.name], matrix[row : row + len(extent), first : first + width])
                first += width
        row += len(extent)
    return [torch.from_numpy(matrix) for matrix in matrices]


def rows_per_group(layout: Layout, /) -> int:
    """Return the rows of a row group: 65,536, or fewer where they would take more than 16 MiB."""
    return max(1, min(_GROUP_ROWS, _GROUP_BYTES // layout.row_bytes))


def _read_group(path: Path, group: int, names: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read_row_group(group, columns=names)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"Row group {group} of {path} cannot be read ({error}): the file was changed since its preparation. Put it "
            "back, or remove the folder and prepare it again with `equipoise data prepare`."
        ) from error
