"""Encoders of features whose values are ids of a vocabulary or a hash: one value, several, or several columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from equipoise.data.encoding.encoder import ColumnEncoder, Encoder
from equipoise.data.encoding.hashing import hashed
from equipoise.data.encoding.id_tables import Hashing, IdTable
from equipoise.data.encoding.places import Place
from equipoise.data.encoding.text import JOINT, normal_form, text_of
from equipoise.schema import PADDING, Categorical, Categories, Pooling

__all__ = ["CategoriesEncoder", "CategoryEncoder", "CrossEncoder", "last_items"]


class CategoryEncoder(ColumnEncoder):
    """One value per row: its id in a table.

    Attributes:
        table: the key of the table in :attr:`Encoding.tables`: the feature itself, or the one whose table it shares.
        cardinality: the number of ids of that table.
    """

    kind: Literal["category"] = "category"
    table: str
    cardinality: int

    @property
    def feature(self) -> Categorical:
        """The feature as the schema holds it."""
        return Categorical(self.name, self.cardinality, "" if self.table == self.name else self.table)

    def encode_column(self, values: pl.Series, place: Place, tables: Mapping[str, IdTable]) -> NDArray[np.int32]:
        """Return ids, shape [rows]."""
        return tables[self.table].ids(values, place)

    def value_names(self, tables: Mapping[str, IdTable]) -> list[str]:
        """Return the name of each id."""
        return tables[self.table].value_names()


class CategoriesEncoder(ColumnEncoder):
    """Several values per row: the ids of the last ``length`` ones, filled with −1 at the end.

    The column holds lists, or text with a separator, or single values. Missing items (null, NaN, empty text) are left
    out before the last ones are taken; unseen items have id 0; a missing list has no items.
    """

    kind: Literal["categories"] = "categories"
    separator: str = Field(min_length=1)
    length: int = Field(ge=1)
    pooling: Pooling
    target: str
    table: str
    cardinality: int

    @property
    def feature(self) -> Categories:
        """The feature as the schema holds it."""
        table = "" if self.table == self.name else self.table
        return Categories(self.name, self.cardinality, self.length, self.pooling, self.target, table)

    def encode_column(self, values: pl.Series, place: Place, tables: Mapping[str, IdTable]) -> NDArray[np.int32]:
        """Return ids, shape [rows, length]."""
        items, counts = last_items(values, self.separator, self.length, place)
        ids = np.full((len(values), self.length), PADDING, np.int32)
        ids[np.arange(self.length) < counts[:, None]] = tables[self.table].ids(items, place)
        return ids

    def value_names(self, tables: Mapping[str, IdTable]) -> list[str]:
        """Return the name of each id."""
        return tables[self.table].value_names()


def last_items(values: pl.Series, separator: str, length: int, place: Place) -> tuple[pl.Series, NDArray[np.int64]]:
    """Return the last ``length`` items of all rows in one series, without missing ones, and their number per row."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    elif values.dtype in (pl.String, pl.Categorical, pl.Enum):
        values = values.cast(pl.String).str.split(separator)
    elif values.dtype != pl.List:
        values = normal_form(values, place).reshape((-1, 1)).arr.to_list()
    counts = values.list.len().fill_null(0).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(values)), counts)
    items = normal_form(values.filter(pl.Series(counts > 0)).explode(), place.items(row))
    if (missing := items.is_null()).any():
        items, row = items.filter(~missing), row[~missing.to_numpy()]
        counts = np.bincount(row, minlength=len(values))
    ends = np.cumsum(counts)
    if (counts > length).any():
        items = items.filter(pl.Series(np.arange(len(items)) >= (ends - length)[row]))
    return items, np.minimum(counts, length)


class CrossEncoder(Encoder):
    """A combination of the values of several columns, hashed: their texts joined by U+001F; 0 if one is missing."""

    kind: Literal["cross"] = "cross"
    of: tuple[str, ...] = Field(min_length=2)
    rows: int = Field(ge=2)

    @property
    def feature(self) -> Categorical:
        """The feature as the schema holds it."""
        return Categorical(self.name, self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that it reads."""
        return self.of

    def encode(self, frame: pl.DataFrame, tables: Mapping[str, IdTable], first_row: int = 0) -> NDArray[np.int32]:
        """Return ids, shape [rows, 1]."""
        texts = [text_of(frame[column], self.place(column, first_row)) for column in self.of]
        joined = pl.select(pl.concat_str([pl.lit(text) for text in texts], separator=JOINT)).to_series()
        return hashed(joined, self.rows).reshape(-1, 1)

    def value_names(self, tables: Mapping[str, IdTable]) -> list[str]:
        """Return the name of each id."""
        return Hashing(rows=self.rows).value_names()
