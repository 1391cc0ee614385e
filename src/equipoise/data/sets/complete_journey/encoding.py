"""Encoding of features, learned from train examples alone: codes become ids, numbers get a common scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from equipoise.schema import Categorical, Numeric

__all__ = ["FEWEST", "Encoding"]

FEWEST: Final = 5
"""Train rows that an id must have to be told apart."""


@dataclass(frozen=True)
class Encoding:
    """Feature ids of codes, and means and deviations of numbers, learned from train examples.

    Attributes:
        ids: name → feature id per code; 0 for codes not seen; the last entry, reached by code -1, is 0 too.
        scales: name → mean and standard deviation of log(1 + number).

    Example:
        >>> ids, numbers = {"store": np.array([4, 2, -1, 9])}, {"price": np.array([1.0, 3.0, np.nan, 7.0])}
        >>> encoding = Encoding.fit(ids, numbers, train=np.array([True, True, True, False]), fewest=1)
        >>> encoding.categorical({"store": np.array([2, 3, 4, 9, -1])})[:, 0].tolist()
        [1, 0, 2, 0, 0]
        >>> encoding.numeric({"price": np.array([1.0, np.nan], np.float32)})[:, 0].tolist()
        [-1.0, 0.0]
    """

    ids: dict[str, NDArray[np.int32]]
    scales: dict[str, tuple[float, float]]

    @classmethod
    def fit(
        cls,
        ids: Mapping[str, NDArray[np.integer]],
        numbers: Mapping[str, NDArray[np.floating]],
        *,
        train: NDArray[np.bool_],
        fewest: int = FEWEST,
    ) -> Encoding:
        """Learn from the ``train`` rows of codes (-1 is missing) and of numbers ≥ 0 (NaN is unknown).

        Codes of fewer than ``fewest`` rows share id 0 with those never seen, so that
        id 0 is trained on rows as rare as those that will have it.
        """
        tables = {}
        for name, column in ids.items():
            codes = column[train]
            seen, counts = np.unique(codes[codes >= 0], return_counts=True)
            seen = seen[counts >= fewest]
            table = np.zeros(int(seen.max(initial=-1)) + 2, np.int32)
            table[seen] = np.arange(1, len(seen) + 1)
            tables[name] = table
        scales = {}
        for name, number in numbers.items():
            values = number[train]
            known = np.log1p(values[~np.isnan(values)].astype(np.float64))
            mean, deviation = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
            scales[name] = (mean, deviation if deviation > 0 else 1.0)
        return cls(tables, scales)

    @property
    def categorical_features(self) -> tuple[Categorical, ...]:
        """Categorical features with their cardinalities."""
        return tuple(Categorical(name, int(table.max(initial=0)) + 1) for name, table in self.ids.items())

    @property
    def numeric_features(self) -> tuple[Numeric, ...]:
        """Numeric features."""
        return tuple(Numeric(name) for name in self.scales)

    def categorical(self, ids: Mapping[str, NDArray[np.integer]]) -> NDArray[np.int32]:
        """Return feature ids, int32, shape [N, number of categorical features]."""
        columns = [table[np.minimum(ids[name], len(table) - 1)] for name, table in self.ids.items()]
        return np.stack(columns, axis=1)

    def numeric(self, numbers: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float32]:
        """Return standardised log(1 + number), 0 (the train mean) where unknown, float32, shape [N, numbers]."""
        columns = [
            np.nan_to_num((np.log1p(numbers[name].astype(np.float64)) - mean) / deviation, nan=0.0)
            for name, (mean, deviation) in self.scales.items()
        ]
        return np.stack(columns, axis=1).astype(np.float32)
