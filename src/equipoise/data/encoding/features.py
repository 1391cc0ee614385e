"""Encoders of single features: each turns raw columns into columns of ids or of floats."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from equipoise.schema import Categorical, Numeric

__all__ = ["CategoryEncoder", "FeatureEncoder", "NumberEncoder", "text_of"]


def text_of(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return values as text, the same for 3, 3.0 and "3", so that files of different types agree."""
    if dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        return pl.when(whole.cast(dtype) == column).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
    return column.cast(pl.String)


class _Encoder(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    column: str


class CategoryEncoder(_Encoder):
    """Ids of a category: place in the vocabulary plus 1; 0 for missing and unseen values."""

    kind: Literal["category"] = "category"
    vocabulary: list[str]

    @property
    def feature(self) -> Categorical:
        """The feature as the schema holds it."""
        return Categorical(self.name, len(self.vocabulary) + 1)

    def encode(self, frame: pl.DataFrame) -> NDArray[np.int32]:
        """Return ids, shape [rows, 1]."""
        text = text_of(pl.col(self.column), frame.schema[self.column])
        ids = pl.int_range(1, len(self.vocabulary) + 1, dtype=pl.Int32, eager=True)
        found = frame.select(text.replace_strict(pl.Series(self.vocabulary, dtype=pl.String), ids, default=0))
        return found.fill_null(0).to_numpy().astype(np.int32)


class NumberEncoder(_Encoder):
    """A number, standardised by mean and deviation of the train rows; a missing one becomes 0."""

    kind: Literal["number"] = "number"
    mean: float
    scale: float

    @property
    def feature(self) -> Numeric:
        """The feature as the schema holds it."""
        return Numeric(self.name)

    def encode(self, frame: pl.DataFrame) -> NDArray[np.float32]:
        """Return values, shape [rows, 1]."""
        value = (pl.col(self.column).cast(pl.Float64) - self.mean) / self.scale
        return frame.select(value.fill_nan(None).fill_null(0.0)).to_numpy().astype(np.float32)


FeatureEncoder = Annotated[CategoryEncoder | NumberEncoder, Field(discriminator="kind")]
"""The encoder of one feature, told apart by ``kind``."""
