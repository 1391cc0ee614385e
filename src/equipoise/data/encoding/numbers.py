"""Encoders of features of numbers: one number, scaled or binned, and vectors of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from equipoise.data.encoding.encoder import ColumnEncoder
from equipoise.data.encoding.id_tables import IdTable
from equipoise.data.encoding.places import Place
from equipoise.schema import Categorical, Numeric, Vector

__all__ = ["BinsEncoder", "NumberEncoder", "Transform", "VectorEncoder", "numbers_of", "transformed"]

Transform = Literal["none", "log1p"]


def numbers_of(values: pl.Series, place: Place) -> NDArray[np.float64]:
    """Return values as float64, with NaN for what is missing: null, NaN and the empty text.

    Text is read as a decimal number, booleans as 0 and 1.

    Raises:
        DataError: the type holds no numbers, a text is no number, or a value is infinite.
    """
    dtype = values.dtype
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        texts = values.cast(pl.String)
        found = texts.cast(pl.Float64, strict=False)
        wrong = (found.is_null() & (texts != "")).fill_null(False)
        if wrong.any():
            raise place.refuse_value(wrong, texts, "numbers")
    elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        found = values.cast(pl.Float64)
    else:
        hint = "; for a part of a time use the kind 'time'" if dtype.is_temporal() else ""
        hint = "; for a list of numbers use the kind 'vector'" if dtype in (pl.List, pl.Array) else hint
        raise place.refuse("numbers", f"{dtype}{hint}")
    if (wrong := found.is_infinite().fill_null(False)).any():
        raise place.refuse_value(wrong, values, "finite numbers, or null for missing")
    numbers: NDArray[np.float64] = found.fill_null(float("nan")).to_numpy()
    return numbers


def _as_float32(numbers: NDArray[np.float64], values: pl.Series, place: Place) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        found = numbers.astype(np.float32)
    if not np.isfinite(found).all():
        raise place.refuse_value(~np.isfinite(found), values, "numbers that float32 holds once scaled")
    return found


def transformed(numbers: NDArray[np.float64], transform: Transform) -> NDArray[np.float64]:
    """Return the numbers before they are standardised: as they are, or sign(x) · log(1 + |x|)."""
    return np.copysign(np.log1p(np.abs(numbers)), numbers) if transform == "log1p" else numbers


class NumberEncoder(ColumnEncoder):
    """One number: (t(x) − mean) / deviation in float64, rounded to float32; a missing one gives 0.

    Attributes:
        transform: t: "none", or "log1p", which is sign(x) · log(1 + |x|), so that negative numbers have a value, too.
        indicator: adds a column that is 1 where the number is missing and 0 elsewhere.
    """

    kind: Literal["number"] = "number"
    transform: Transform
    mean: float
    deviation: float = Field(gt=0)
    indicator: bool

    @property
    def feature(self) -> Numeric | Vector:
        """The feature as the schema holds it: with an indicator, a vector of two."""
        return Vector(self.name, 2) if self.indicator else Numeric(self.name)

    def encode_column(self, values: pl.Series, place: Place, tables: Mapping[str, IdTable]) -> NDArray[np.float32]:
        """Return values, shape [rows, 1], or [rows, 2] with the indicator."""
        numbers = numbers_of(values, place)
        missing = np.isnan(numbers)
        scaled = (transformed(numbers, self.transform) - self.mean) / self.deviation
        scaled[missing] = 0.0
        columns = [_as_float32(scaled, values, place)]
        return np.stack([*columns, missing.astype(np.float32)] if self.indicator else columns, axis=1)

    def value_names(self, tables: Mapping[str, IdTable]) -> list[str]:
        """Return nothing: there are no ids."""
        return []


def _ascending(edges: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in pairwise(edges)):
        raise ValueError("expected ascending edges")
    return edges


class BinsEncoder(ColumnEncoder):
    """One number as an id: 1 plus the number of edges that are at most x; 0 if it is missing."""

    kind: Literal["bins"] = "bins"
    edges: Annotated[tuple[float, ...], AfterValidator(_ascending)]

    @property
    def feature(self) -> Categorical:
        """The feature as the schema holds it."""
        return Categorical(self.name, len(self.edges) + 2)

    def encode_column(self, values: pl.Series, place: Place, tables: Mapping[str, IdTable]) -> NDArray[np.int32]:
        """Return ids, shape [rows]."""
        numbers = numbers_of(values, place)
        ids = np.searchsorted(np.asarray(self.edges), numbers, side="right").astype(np.int32) + np.int32(1)
        ids[np.isnan(numbers)] = 0
        return ids

    def value_names(self, tables: Mapping[str, IdTable]) -> list[str]:
        """Return the range of each id."""
        if not self.edges:
            return ["missing", "any"]
        inner = [f"{low:g} to {high:g}" for low, high in pairwise(self.edges)]
        return ["missing", f"below {self.edges[0]:g}", *inner, f"from {self.edges[-1]:g}"]


class VectorEncoder(ColumnEncoder):
    """A vector of ``width`` numbers, rounded to float32; a missing one (null, empty) gives zeros.

    The column holds lists, or text with a separator.
    """

    kind: Literal["vector"] = "vector"
    width: int = Field(ge=1)
    separator: str | None = Field(min_length=1)

    @property
    def feature(self) -> Vector:
        """The feature as the schema holds it."""
        return Vector(self.name, self.width)

    def encode_column(self, values: pl.Series, place: Place, tables: Mapping[str, IdTable]) -> NDArray[np.float32]:
        """Return values, shape [rows, width]."""
        lists = self._lists(values, place)
        counts = lists.list.len().fill_null(0).to_numpy()
        if (wrong := (counts != 0) & (counts != self.width)).any():
            found = int(counts[wrong][0])
            raise place.refuse_value(wrong, values, f"vectors of {self.width} numbers (not {found})")
        given = counts > 0
        items = lists.filter(pl.Series(given)).explode()
        place = place.items(np.repeat(np.flatnonzero(given), self.width))
        numbers = numbers_of(items, place)
        if (missing := np.isnan(numbers)).any():
            raise place.refuse_value(missing, items, "vectors without missing numbers")
        vectors = np.zeros((len(values), self.width), np.float32)
        vectors[given] = _as_float32(numbers, items, place).reshape(-1, self.width)
        return vectors

    def _lists(self, values: pl.Series, place: Place) -> pl.Series:
        if values.dtype == pl.Null:
            return values.cast(pl.List(pl.Float64))
        if isinstance(values.dtype, pl.Array):
            return values.arr.to_list()
        if values.dtype == pl.String and self.separator is not None:
            return values.set(values == "", None).str.split(self.separator)
        if values.dtype != pl.List:
            hint = "; state the separator of the numbers" if values.dtype == pl.String else ""
            raise place.refuse("lists of numbers", f"{values.dtype}{hint}")
        return values

    def value_names(self, tables: Mapping[str, IdTable]) -> list[str]:
        """Return nothing: there are no ids."""
        return []
