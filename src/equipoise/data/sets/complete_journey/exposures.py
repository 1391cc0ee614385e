"""Exposures: the promotions that households met in the stores they visited; addressed by number, not stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from equipoise.data.sets.complete_journey.tables import Codes, Tables

__all__ = ["Exposures", "Week"]


@dataclass(frozen=True)
class Exposures:
    """N exposures as columns; each is a household in a store in a week, and a placement of a product there."""

    household: Codes
    store: Codes
    week: Codes
    product: Codes
    display: Codes
    mailer: Codes

    def __len__(self) -> int:
        return len(self.week)

    @classmethod
    def concatenate(cls, parts: list[Exposures]) -> Exposures:
        """Join parts, one after the other."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __getitem__(self, rows: slice | np.ndarray) -> Exposures:
        return Exposures(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class Week:
    """The exposures of a week, numbered 0 … len − 1 by (household, store), then by (product, display, mailer).

    A visit is a household with at least one transaction in a store in the week. It is exposed to every
    placement of a product in that store and week: a product with two placements there (one in 1,600) makes
    two exposures.

    Args:
        tables: the published tables.
        week: 1 … 53.
        households: codes of the households to keep; all of them where None.
    """

    def __init__(self, tables: Tables, week: int, households: Codes | None = None) -> None:
        self._promotions = tables.promotions
        self._week = week
        bought = tables.purchases.week == week
        if households is not None:
            bought &= np.isin(tables.purchases.household, households)
        stores = tables.promotions.stores
        basket = tables.purchases.household[bought] * stores + tables.purchases.store[bought]
        self._product = tables.purchases.product[bought]
        visits, self._visit = np.unique(basket, return_inverse=True)
        self._household, self._store = np.divmod(visits, stores)
        self._first, past = self._promotions.places(np.full_like(visits, week), self._store)
        self._start = np.concatenate([[0], np.cumsum(past - self._first)])

    def __len__(self) -> int:
        return int(self._start[-1])

    @property
    def visits(self) -> int:
        """Number of visits that met a promotion."""
        return int(np.count_nonzero(np.diff(self._start)))

    @cached_property
    def purchased(self) -> Codes:
        """Numbers of the exposures whose product was bought in that store and week, ascending."""
        store = self._store[self._visit]
        first, past = self._promotions.places(np.full_like(store, self._week), store, self._product)
        number = self._start[self._visit] + first - self._first[self._visit]
        placements = past - first
        extra = [number[placements > n] + n for n in range(int(placements.max(initial=0)))]
        return np.sort(np.concatenate([np.empty(0, np.int64), *extra]))

    def rows(self, numbers: Codes) -> Exposures:
        """Return the exposures with these numbers."""
        visit = np.searchsorted(self._start, numbers, side="right") - 1
        keys = self._promotions.keys[self._first[visit] + numbers - self._start[visit]]
        product, display, mailer = self._promotions.unpack(keys)
        week = np.full_like(product, self._week)
        return Exposures(self._household[visit], self._store[visit], week, product, display, mailer)
