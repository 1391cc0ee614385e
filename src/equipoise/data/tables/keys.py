"""Columns that name something besides features and labels: the time, the user, the split and the slices of a row."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from equipoise.data.encoding.places import Place
from equipoise.data.encoding.text import normal_form
from equipoise.errors import DataError

__all__ = ["MISSING", "KeyPlace", "hashed_values", "mixed"]

MISSING: Final = np.uint64(0)
"""The hash of a missing value."""


@dataclass(frozen=True)
class KeyPlace(Place):
    """The values of a column that a key of the settings names, for messages.

    Attributes:
        file: the file that they come from.
    """

    file: str = ""

    def refuse(self, expected: str, found: str) -> DataError:
        """Return the error for the column as a whole."""
        return DataError(
            f"The column {self.column!r} of `{self.feature}` in {self.file}: expected {expected}, found {found}."
        )


def mixed(numbers: NDArray[Any], /) -> NDArray[np.uint64]:
    """Return 64 bits that look random for each whole number, other ones for other numbers (SplitMix64, Steele 2014)."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashed_values(values: pl.Series, place: Place, /) -> NDArray[np.uint64]:
    """Return a hash of 64 bits of each value, the same on every machine; :data:`MISSING` for a missing one.

    Raises:
        DataError: the column's type has no text.
    """
    found = normal_form(values, place)
    if values.dtype.is_float():  # whole in one block and not in another, a number has to keep its hash
        found = found.cast(pl.String)
    missing = found.is_null().to_numpy()
    if found.dtype == pl.Int64:
        hashes = mixed(found.fill_null(0).to_numpy())
    else:
        distinct = found.unique().drop_nulls()
        digests = [blake2b(text.encode(), digest_size=8).digest() for text in distinct.to_list()]
        codes = pl.Series(np.frombuffer(b"".join(digests), "<u8"), dtype=pl.UInt64)
        hashes = found.replace_strict(distinct, codes, default=0, return_dtype=pl.UInt64).to_numpy()
    return np.where(missing, MISSING, np.maximum(hashes, np.uint64(2)))
