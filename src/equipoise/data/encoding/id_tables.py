"""Tables from values to ids: a vocabulary or a hash, each for one feature or for several that share it."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from equipoise.data.encoding.hashing import hashed
from equipoise.data.encoding.index import Index
from equipoise.data.encoding.places import Place
from equipoise.data.encoding.text import normal_form, text_of

__all__ = ["Hashing", "IdTable", "Vocabulary"]

MISSING_OR_UNSEEN = "missing or unseen"


def _as_texts(values: Any) -> pl.Series:
    if isinstance(values, list | tuple) and all(isinstance(value, str) for value in values):
        values = pl.Series(values, dtype=pl.String)
    if not isinstance(values, pl.Series) or values.dtype != pl.String or not 0 < values.n_unique() == len(values):
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
    values: _Texts = Field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.values.equals(other.values)

    __hash__ = None  # type: ignore[assignment]

    @property
    def cardinality(self) -> int:
        """The number of ids, with id 0."""
        return len(self.values) + 1

    def ids(self, values: pl.Series, place: Place) -> NDArray[np.int32]:
        """Return the id of each value, shape [values]."""
        values = normal_form(values, place)
        if values.dtype == pl.Int64:
            ids = self._number_index.find(values.fill_null(0).to_numpy().view(np.uint64))
            ids = self._ids_of_numbers.take(ids)
            wrong = values.is_null()
        else:
            seed, index = self._text_index
            ids = index.find(values.hash(seed).to_numpy())
            wrong = values.ne_missing(self.values.gather(np.maximum(ids - 1, 0)))  # missing, or with the same hash
        if wrong.any():
            ids[wrong.to_numpy()] = 0
        return ids

    @cached_property
    def _text_index(self) -> tuple[int, Index]:
        """A seed for the hash of polars that tells all texts apart, and the index of the hashes."""
        for seed in range(100):  # about one in a million vocabularies of 10 million texts needs a second one
            try:
                return seed, Index(self.values.hash(seed).to_numpy())
            except ValueError:
                continue
        raise AssertionError("no seed of a hundred tells the texts of the vocabulary apart")

    @cached_property
    def _ids_of_numbers(self) -> NDArray[np.int32]:
        """The ids of those texts that whole numbers have, after 0: numbers then need no text to find theirs."""
        is_number = self.values.cast(pl.Int64, strict=False).cast(pl.String).eq_missing(self.values)
        return np.concatenate([[0], is_number.arg_true().to_numpy() + 1]).astype(np.int32)

    @cached_property
    def _number_index(self) -> Index:
        numbers = self.values.gather(self._ids_of_numbers[1:] - 1).cast(pl.Int64)
        return Index(numbers.to_numpy().view(np.uint64))

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
