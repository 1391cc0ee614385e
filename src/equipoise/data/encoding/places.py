"""Places in raw columns, and the messages that name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from equipoise.errors import DataError, did_you_mean

__all__ = ["Place", "check_columns"]


@dataclass(frozen=True)
class Place:
    """The values of a column that are being encoded, for messages.

    Attributes:
        feature: the feature that reads them.
        column: the raw column.
        first_row: the number of the block's first row, so that blocks of a file name rows of the file.
        rows: the row in the block of each value; None: the values are one per row.
    """

    feature: str
    column: str
    first_row: int = 0
    rows: NDArray[np.integer[Any]] | None = None

    def items(self, rows: NDArray[np.integer[Any]]) -> Place:
        """Return the place of several values per row, given the row of each."""
        return Place(self.feature, self.column, self.first_row, rows)

    def refuse(self, expected: str, found: str) -> DataError:
        """Return the error for the column as a whole."""
        return DataError(f"Feature {self.feature!r}, column {self.column!r}: expected {expected}, found {found}.")

    def refuse_value(self, wrong: pl.Series | NDArray[np.bool_], values: pl.Series, expected: str) -> DataError:
        """Return the error for the first wrong value, with its row and the number of wrong ones."""
        indices = np.flatnonzero(np.asarray(wrong))
        first = int(indices[0])
        row = self.first_row + (first if self.rows is None else int(self.rows[first]))
        value = values[first]
        shown = repr(value.to_list() if isinstance(value, pl.Series) else value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        others = f" ({len(indices)} such values in {len(values)})" if len(indices) > 1 else ""
        return self.refuse(expected, f"{shown} in row {row}, counted from 0{others}")


def check_columns(wanted: Sequence[str], found: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        DataError: a wanted column is not there; the message names the nearest one.
    """
    if missing := [column for column in dict.fromkeys(wanted) if column not in found]:
        names = f"{', '.join(map(repr, missing))}" if len(missing) > 1 else repr(missing[0])
        kind = "columns" if len(missing) > 1 else "column"
        guess = did_you_mean(missing[0], found) or "."
        raise DataError(f"Expected the {kind} {names}, found only {', '.join(found) or 'none'}{guess}")
