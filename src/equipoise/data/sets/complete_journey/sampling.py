"""The sample of exposures: all with a purchase, and a stated share of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from equipoise.data.sets.complete_journey.examples import Examples
from equipoise.data.sets.complete_journey.exposures import Exposures, Week
from equipoise.data.sets.complete_journey.tables import Codes, Tables
from equipoise.errors import DataError

__all__ = ["LATER_WEEKS", "ROWS", "WEEKS", "Sample", "bernoulli", "check_options"]

WEEKS: Final = {"train": range(9, 41), "validation": range(41, 45), "test": range(45, 50)}
"""The weeks of each split. Weeks 1–8 are history only; after week 49 ``repeat`` is not known."""

LATER_WEEKS: Final = range(50, 54)
"""Test weeks on which nothing has been chosen, for a last confirmation. ``repeat`` has no positives there."""

ROWS: Final = 600_000
"""About how many rows the default data set has."""

_FEWEST, _MOST = 5_000, 10_000_000


def check_options(rows: int, seed: int, *, later: bool = False) -> None:
    """Raise DataError unless ``rows`` fits into memory, ``seed`` is a whole number ≥ 0, and ``later`` true or false."""
    if not isinstance(later, bool):
        raise DataError(f"Expected later to be true or false, found {later!r}.")
    if isinstance(rows, bool) or not isinstance(rows, int) or not _FEWEST <= rows <= _MOST:
        raise DataError(
            f"Expected rows to be a whole number from {_FEWEST:,} to {_MOST:,}, found {rows!r}. "
            "To get all 319 million exposures, call complete_journey.stream_all."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"Expected seed to be a whole number from 0 up, found {seed!r}.")


@dataclass(frozen=True)
class Sample:
    """Sampled exposures of the splits' weeks, in the order of weeks.

    Attributes:
        exposures: the N exposures kept.
        labels: float32, shape [N, 5].
        weight: how many exposures each stands for: 1 with a purchase, 1 / rate without, float32, shape [N].
        rate: the probability with which an exposure without a purchase was kept.
        households: the number of households in the sample.
        natural: the number of exposures of those households in these weeks, before sampling.
        weeks: split to its weeks.
    """

    exposures: Exposures
    labels: NDArray[np.float32]
    weight: NDArray[np.float32]
    rate: float
    households: int
    natural: int
    weeks: Mapping[str, range]

    @classmethod
    def draw(cls, tables: Tables, examples: Examples, *, rows: int, seed: int, later: bool = False) -> Sample:
        """Draw all exposures with a purchase, and enough others for about ``rows`` rows; see ``load``.

        With ``later`` the rows of train and validation are the same as without.
        """
        weeks = {number: Week(tables, number) for split in WEEKS.values() for number in split}
        natural = sum(len(week) for week in weeks.values())
        purchased = sum(len(week.purchased) for week in weeks.values())
        rate = min(1.0, (max(rows, ROWS) - purchased) / (natural - purchased))
        of_splits = WEEKS | ({"test": LATER_WEEKS} if later else {})
        if later:
            kept = {number for split in of_splits.values() for number in split}
            weeks = {number: weeks.get(number) or Week(tables, number) for number in sorted(kept)}
            natural = sum(len(week) for week in weeks.values())
        households = tables.households
        if rows < ROWS:
            households = max(1, round(households * rows / ROWS))
            chosen = _generator(seed, 0).permutation(tables.households)[:households]
            weeks = {number: Week(tables, number, chosen) for number in weeks}
            natural = sum(len(week) for week in weeks.values())
        parts = []
        for number, week in weeks.items():
            # a stream of its own for every week: what one week draws does not depend on the others
            drawn = bernoulli(len(week), rate, _generator(seed, number))
            parts.append(week.rows(np.union1d(drawn, week.purchased)))
        exposures = Exposures.concatenate(parts)
        labels = examples.labels(exposures)
        weight = np.where(labels[:, 1] == 1, 1.0, 1.0 / rate).astype(np.float32)
        return cls(exposures, labels, weight, rate, households, natural, of_splits)

    def rows(self, split: str) -> NDArray[np.bool_]:
        """Return the rows of a split as a mask, shape [N]."""
        weeks = self.weeks[split]
        return (self.exposures.week >= weeks.start) & (self.exposures.week < weeks.stop)


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))


def bernoulli(count: int, rate: float, generator: np.random.Generator) -> Codes:
    """Draw numbers out of 0 … count − 1, each with probability ``rate``, ascending.

    Draws the gaps between kept numbers, so that the cost grows with the numbers kept alone. Gaps are computed from
    uniform floats, whose stream numpy keeps the same between releases, unlike that of its distributions.
    """
    if rate >= 1:
        return np.arange(count)
    parts, last = [np.empty(0, np.int64)], -1
    while last < count:
        size = int(count * rate) + 100
        gaps = np.floor(np.log1p(-generator.random(size)) / np.log1p(-rate)).astype(np.int64) + 1
        parts.append(last + np.cumsum(gaps))
        last = int(parts[-1][-1])
    numbers = np.concatenate(parts)
    return numbers[numbers < count]
