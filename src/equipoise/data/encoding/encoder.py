"""The common form of the encoders of single features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from equipoise.data.encoding.id_tables import IdTable
from equipoise.data.encoding.places import Place
from equipoise.schema import Categorical, Categories, Numeric, Vector

__all__ = ["ColumnEncoder", "Encoder"]


class Encoder(BaseModel, ABC):
    """The encoder of one feature: reads raw columns, gives columns of ids or of floats.

    Attributes:
        name: the name of the feature.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1)

    @property
    @abstractmethod
    def feature(self) -> Categorical | Categories | Numeric | Vector:
        """The feature as the schema holds it."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The raw columns that it reads."""

    @abstractmethod
    def encode(self, frame: pl.DataFrame, tables: Mapping[str, IdTable], first_row: int = 0) -> NDArray[Any]:
        """Return ids, int32, or values, float32, shape [rows, columns of the feature].

        Raises:
            DataError: a value is of another type or out of range.
        """

    @abstractmethod
    def value_names(self, tables: Mapping[str, IdTable]) -> list[str]:
        """Return the name of each id; none for features of floats."""

    def place(self, column: str, first_row: int) -> Place:
        """Return the place of a column of a block, for messages."""
        return Place(self.name, column, first_row)


class ColumnEncoder(Encoder):
    """The encoder of one raw column."""

    column: str = Field(min_length=1)

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that it reads."""
        return (self.column,)

    def encode(self, frame: pl.DataFrame, tables: Mapping[str, IdTable], first_row: int = 0) -> NDArray[Any]:
        """Return ids, int32, or values, float32, shape [rows, columns of the feature].

        Raises:
            DataError: a value is of another type or out of range.
        """
        found = self.encode_column(frame[self.column], self.place(self.column, first_row), tables)
        return found if found.ndim == 2 else found[:, None]

    @abstractmethod
    def encode_column(self, values: pl.Series, place: Place, tables: Mapping[str, IdTable]) -> NDArray[Any]:
        """Return ids or values of one raw column, shape [rows] or [rows, columns]."""
