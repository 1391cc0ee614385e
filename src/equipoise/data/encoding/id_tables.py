"""Tables from values to ids: a vocabulary or a hash, each for one feature or for several that share it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from equipoise.data.encoding.places import Place
from equipoise.data.encoding.text import hashed, text_of

__all__ = ["Hashing", "IdTable", "Vocabulary"]

MISSING_OR_UNSEEN = "missing or unseen"


def _as_texts(values: Any) -> pl.Series:
    if isinstance(values, list | tuple) and all(isinstance(value, str) for value in values):
        values = pl.Series(values, dtype=pl.String)
    if not isinstance(values, pl.Series) or values.dtype != pl.String or values.n_unique() != len(values):
        raise ValueError("expected a list of different texts")
    return values


_Texts = Annotated[pl.Series, PlainValidator(_as_texts), PlainSerializer(lambda texts: texts.to_list())]


class Vocabulary(BaseModel):
    """Values with an id of their own: the place in the list plus 1; 0 for missing and unseen values.

    Attributes:
        values: the texts, most frequent first, as a polars Series: a list of Python would take thrice the memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    kind: Literal["vocabulary"] = "vocabulary"
    values: _Texts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.values.equals(other.values)

    __hash__ = None  # type: ignore[assignment]

    @property
    def cardinality(self) -> int:
        """The number of ids, with id 0."""
        return len(self.values) + 1

    def ids(self, values: pl.Series, place: Place) -> NDArray[np.int32]:
        """Return the id of each value, shape [values]."""
        ids = pl.int_range(1, self.cardinality, dtype=pl.Int32, eager=True)
        found = text_of(values, place).replace_strict(self.values, ids, default=0)
        return found.fill_null(0).to_numpy().astype(np.int32, copy=False)

    def value_names(self) -> list[str]:
        """Return the name of each id."""
        return [MISSING_OR_UNSEEN, *self.values.to_list()]


class Hashing(BaseModel):
    """Values hashed into the ids from 1 to ``rows`` − 1; 0 for missing values. Several values may share an id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["hash"] = "hash"
    rows: int = Field(ge=2)

    @property
    def cardinality(self) -> int:
        """The number of ids, with id 0."""
        return self.rows

    def ids(self, values: pl.Series, place: Place) -> NDArray[np.int32]:
        """Return the id of each value, shape [values]."""
        return hashed(text_of(values, place), self.rows)

    def value_names(self) -> list[str]:
        """Return the name of each id."""
        return ["missing", *(f"hash {row}" for row in range(1, self.rows))]


IdTable = Annotated[Vocabulary | Hashing, Field(discriminator="kind")]
"""A table from values to ids, told apart by ``kind``."""
