"""The examples of exposures: five labels, ids, and numbers computed from past weeks only."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from equipoise.data.sets.complete_journey.exposures import Exposures
from equipoise.data.sets.complete_journey.history import History
from equipoise.data.sets.complete_journey.tables import LAST_WEEK, Codes, Tables
from equipoise.schema import Task

__all__ = ["REPEAT_WEEKS", "TASKS", "Examples"]

TASKS: Final = (
    Task("category", "bought anything of the product's category that week"),
    Task("purchase", "bought the product in that store that week", after="category", over="all"),
    Task("multiple", "bought two or more of it", after="purchase", over="all"),
    Task("coupon", "bought it with a coupon", after="purchase", over="all"),
    Task("repeat", "bought it, and again within the four weeks that follow", after="purchase", over="all"),
)

REPEAT_WEEKS: Final = 4

_NEVER: Final = 60  # the recency in weeks of what has not happened, beyond the 52 that can be
_RECENT: Final = 4  # weeks
_YEAR: Final = 52


class Examples:
    """Computes labels and features of exposures, from histories that are prepared once.

    A product without a category in the catalogue is a category of its own.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        bought = tables.purchases
        household, product, week = bought.household, bought.product, bought.week
        once = np.ones_like(week)
        self._category = _own_where_missing(tables.product_columns["product_category"])
        self._by_visit = History(
            self._visit_product(household, bought.store, product),
            week,
            units=bought.units,
            coupons=bought.coupon,
        )
        self._by_category = History(self._household_category(household, product), week)
        self._by_pair = History(self._household_product(household, product), week)
        self._by_product = History(
            product, week, purchases=once, units=bought.units, paid=bought.paid, discount=bought.discount
        )
        self._by_store = History(self._store_product(bought.store, product), week, purchases=once)

    def labels(self, exposures: Exposures) -> NDArray[np.float32]:
        """Return the labels in the order of :data:`TASKS`: 0, 1 or NaN (missing), float32, shape [N, 5].

        ``repeat`` looks at the next four weeks; it is missing if something was bought and the data end before those
        weeks do. If nothing was bought, the tasks after ``category`` are 0.
        """
        e, week = exposures, exposures.week
        now = self._by_visit.span(self._visit_product(e.household, e.store, e.product), week, week + 1)
        purchase = self._by_visit.weeks(now) > 0
        multiple = self._by_visit.total("units", now) >= 2
        coupon = self._by_visit.total("coupons", now) > 0
        of_category = self._by_category.span(self._household_category(e.household, e.product), week, week + 1)
        category = self._by_category.weeks(of_category) > 0
        ahead = self._by_pair.span(self._household_product(e.household, e.product), week + 1, week + 1 + REPEAT_WEEKS)
        repeat = (purchase & (self._by_pair.weeks(ahead) > 0)).astype(np.float32)
        repeat[purchase & (week + REPEAT_WEEKS > LAST_WEEK)] = np.nan
        return np.stack([category, purchase, multiple, coupon, repeat], axis=1, dtype=np.float32)

    def ids(self, exposures: Exposures) -> dict[str, Codes | NDArray[np.int32]]:
        """Return the categorical features as codes of the tables, -1 where missing; each of shape [N]."""
        e = exposures
        columns: dict[str, Codes | NDArray[np.int32]] = {
            "household": e.household, "store": e.store, "product": e.product
        }  # fmt: skip
        columns |= {name: codes[e.product] for name, codes in self._tables.product_columns.items()}
        columns |= {"display": e.display, "mailer": e.mailer}
        columns |= {name: codes[e.household] for name, codes in self._tables.household_columns.items()}
        return columns

    def numbers(self, exposures: Exposures) -> dict[str, NDArray[np.float32]]:
        """Return the numeric features, from the weeks before the exposure: ≥ 0, NaN where unknown, each of shape [N].

        - ``category_recency``, ``product_recency``: weeks since the household last bought the category or
          product;
        - ``category_frequency``, ``product_frequency``: in how many weeks a year it bought them;
        - ``popularity``, ``popularity_store``: purchases a year, everywhere and in this store;
          ``popularity_recent``: purchases in the last four weeks;
        - ``usual_price``: mean price before discount, in money; ``usual_discount``: its discounted share, 0 …
          1;
        - ``campaigns_received``: campaigns that the household had received; ``campaigns_running``: those not
          yet over;
          ``offers``: those of them with a coupon for the product. Only campaigns that started before the week
          count.

        "A year" extrapolates from the weeks so far, so that a number means the same in early and late weeks.
        """
        e, week = exposures, exposures.week
        years = np.maximum(week - 1, 1) / _YEAR
        numbers: dict[str, NDArray[np.floating] | Codes] = {}

        of_category = self._by_category.span(self._household_category(e.household, e.product), 0, week)
        numbers["category_recency"] = _recency(week, self._by_category.last_week(of_category))
        numbers["category_frequency"] = self._by_category.weeks(of_category) / years
        of_pair = self._by_pair.span(self._household_product(e.household, e.product), 0, week)
        numbers["product_recency"] = _recency(week, self._by_pair.last_week(of_pair))
        numbers["product_frequency"] = self._by_pair.weeks(of_pair) / years

        of_product = self._by_product.span(e.product, 0, week)
        recent = self._by_product.span(e.product, np.maximum(week - _RECENT, 0), week)
        in_store = self._by_store.span(self._store_product(e.store, e.product), 0, week)
        numbers["popularity"] = self._by_product.total("purchases", of_product) / years
        numbers["popularity_recent"] = self._by_product.total("purchases", recent)
        numbers["popularity_store"] = self._by_store.total("purchases", in_store) / years
        discount = self._by_product.total("discount", of_product)
        before_discount = self._by_product.total("paid", of_product) + discount
        numbers["usual_price"] = _ratio(before_discount / 100, self._by_product.total("units", of_product))
        numbers["usual_discount"] = _ratio(discount, before_discount)

        received = self._tables.campaigns[e.household] & self._tables.started[week]
        running = received & self._tables.running[week]
        numbers["campaigns_received"] = _count_bits(received)
        numbers["campaigns_running"] = _count_bits(running)
        numbers["offers"] = _count_bits(running & self._tables.couponed[e.product])
        return {name: values.astype(np.float32) for name, values in numbers.items()}

    def _household_product(self, household: Codes, product: Codes) -> Codes:
        return household * self._tables.products + product

    def _household_category(self, household: Codes, product: Codes) -> Codes:
        return household * (int(self._category.max()) + 1) + self._category[product]

    def _store_product(self, store: Codes, product: Codes) -> Codes:
        return store * self._tables.products + product

    def _visit_product(self, household: Codes, store: Codes, product: Codes) -> Codes:
        return (household * self._tables.promotions.stores + store) * self._tables.products + product


def _own_where_missing(codes: NDArray[np.int32]) -> Codes:
    own = int(codes.max()) + 1 + np.arange(len(codes))
    return np.where(codes < 0, own, codes)


def _recency(week: Codes, last: Codes) -> Codes:
    return np.where(last > 0, week - last, _NEVER)


def _ratio(part: NDArray[np.floating] | Codes, whole: Codes) -> NDArray[np.floating]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _count_bits(masks: Codes) -> Codes:
    count = np.zeros_like(masks)
    while masks.any():
        count += masks & 1
        masks = masks >> 1
    return count
