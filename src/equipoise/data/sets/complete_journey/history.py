"""Running totals per key and week: the events of a household, a product or a pair before a week."""

from __future__ import annotations

import numpy as np

from equipoise.data.sets.complete_journey.tables import Codes

__all__ = ["History"]

_WEEKS = 64  # weeks 0 … 63 fit below a key


class History:
    """Events of many keys: counts and sums between two weeks, and the last week with an event.

    All totals are whole numbers, so that later events cannot change the totals before a week, not even by rounding.

    Args:
        key: the household, product or pair of each event, ≥ 0.
        week: the week of each event, 0 … 63.
        amounts: name → whole number per event; events of a key in one week are summed.

    Example:
        >>> history = History(np.array([7, 7, 7]), np.array([2, 2, 5]), units=np.array([1, 2, 4]))
        >>> before = history.span(np.array([7, 7, 8]), 0, np.array([5, 6, 6]))
        >>> history.total("units", before).tolist()
        [3, 7, 0]
        >>> history.weeks(before).tolist(), history.last_week(before).tolist()
        ([1, 2, 0], [2, 5, 0])
    """

    def __init__(self, key: Codes, week: Codes, **amounts: Codes) -> None:
        self._stamps, inverse = np.unique(key * _WEEKS + week, return_inverse=True)
        self._running = {}
        for name, amount in amounts.items():
            sums = np.zeros(len(self._stamps) + 1, np.int64)
            np.add.at(sums, inverse + 1, amount)
            self._running[name] = np.cumsum(sums)

    def span(self, key: Codes, first: Codes | int, end: Codes | int) -> tuple[Codes, Codes]:
        """Return the places of the events of each key in the weeks from ``first`` to just before ``end``."""
        low = np.searchsorted(self._stamps, key * _WEEKS + first)
        return low, np.searchsorted(self._stamps, key * _WEEKS + end)

    def total(self, name: str, span: tuple[Codes, Codes]) -> Codes:
        """Sum an amount over each span."""
        running = self._running[name]
        total: Codes = running[span[1]] - running[span[0]]
        return total

    def weeks(self, span: tuple[Codes, Codes]) -> Codes:
        """Count the weeks of each span that hold an event."""
        return span[1] - span[0]

    def last_week(self, span: tuple[Codes, Codes]) -> Codes:
        """Return the last week of each span that holds an event; 0 where none does."""
        if not len(self._stamps):
            return np.zeros_like(span[1])
        last = self._stamps[np.maximum(span[1] - 1, 0)] % _WEEKS
        return np.where(span[1] > span[0], last, 0)
