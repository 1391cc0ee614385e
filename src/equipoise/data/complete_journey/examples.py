"""From exposures to examples: the five labels, the ids, and the numbers that look at past weeks only."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from equipoise.data.complete_journey.exposures import Exposures
from equipoise.data.complete_journey.history import History
from equipoise.data.complete_journey.tables import LAST_WEEK, Codes, Tables
from equipoise.ranking.schema import Task

__all__ = ["REPEAT_WEEKS", "TASKS", "Examples"]

TASKS: Final = (
    Task("category", "bought anything of the product's category that week"),
    Task("purchase", "bought the product in that store that week"),
    Task("multiple", "bought two or more of it"),
    Task("coupon", "bought it with a coupon"),
    Task("repeat", "bought it, and again within the four weeks that follow"),
)

REPEAT_WEEKS: Final = 4

_NEVER: Final = 60  # weeks: the recency of what has not happened, beyond the 52 that can be
_YEAR: Final = 52


class Examples:
    """Labels and features of any exposures, from histories that are prepared once.

    A product that the catalogue gives no category (or type) is a category (or type) of its own.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        bought = tables.purchases
        household, product, week = bought.household, bought.product, bought.week
        self._category = _own_where_missing(tables.product_columns["product_category"])
        self._type = _own_where_missing(tables.product_columns["product_type"])
        amounts = {"units": bought.units, "coupons": bought.coupon}
        money = {"paid": bought.paid, "discount": bought.discount}
        lines = {"lines": np.ones_like(week)}
        self._by_visit_product = History(self._visit_product(household, bought.store, product), week, **amounts)
        self._by_household_category = History(self._of(household, self._category[product]), week, **amounts)
        self._by_household_type = History(self._of(household, self._type[product]), week, **amounts)
        self._by_household_product = History(self._of(household, product), week, **amounts)
        self._by_household = History(household, week, **amounts, **lines)
        self._by_product = History(product, week, **amounts, **money, **lines)
        self._by_store_product = History(bought.store * tables.products + product, week, **lines)

    def labels(self, exposures: Exposures) -> NDArray[np.float32]:
        """The labels in the order of :data:`TASKS`: 0, 1 or NaN (missing), float32, shape [N, 5].

        ``repeat`` looks up to four weeks ahead, that is its meaning; it is missing where something was bought and
        those weeks are not all in the data. Where nothing was bought the tasks after ``category`` are 0.
        """
        e, week = exposures, exposures.week
        here = self._visit_product(e.household, e.store, e.product)
        now = self._by_visit_product.span(here, week, week + 1)
        purchase = self._by_visit_product.weeks(now) > 0
        of_category = self._of(e.household, self._category[e.product])
        category = self._by_household_category.weeks(self._by_household_category.span(of_category, week, week + 1)) > 0
        pair = self._of(e.household, e.product)
        ahead = self._by_household_product.span(pair, week + 1, week + 1 + REPEAT_WEEKS)
        repeat = (purchase & (self._by_household_product.weeks(ahead) > 0)).astype(np.float32)
        repeat[purchase & (week + REPEAT_WEEKS > LAST_WEEK)] = np.nan
        multiple = self._by_visit_product.total("units", now) >= 2
        coupon = self._by_visit_product.total("coupons", now) > 0
        return np.stack([category, purchase, multiple, coupon, repeat], axis=1).astype(np.float32)

    def ids(self, exposures: Exposures) -> dict[str, Codes | NDArray[np.int32]]:
        """The categorical features as codes of the tables, -1 where missing; each of shape [N]."""
        e = exposures
        columns: dict[str, Codes | NDArray[np.int32]] = {
            "household": e.household, "store": e.store, "product": e.product
        }  # fmt: skip
        columns |= {name: codes[e.product] for name, codes in self._tables.product_columns.items()}
        columns |= {"display": e.display, "mailer": e.mailer}
        columns |= {name: codes[e.household] for name, codes in self._tables.household_columns.items()}
        return columns

    def numbers(self, exposures: Exposures) -> dict[str, NDArray[np.float32]]:
        """The numeric features from the weeks before each exposure's own, ≥ 0, NaN where unknown; each of shape [N].

        Recencies are in weeks, frequencies in weeks (or events) per year as far as it has gone, prices in money,
        ``discount`` and ``coupons`` shares of 1; ``campaigns`` and ``offers`` count campaigns that had started.
        """
        e, week = exposures, exposures.week
        years = np.maximum(week - 1, 1) / _YEAR
        numbers: dict[str, NDArray[np.floating] | Codes] = {}

        for name, history, key in (
            ("category", self._by_household_category, self._of(e.household, self._category[e.product])),
            ("type", self._by_household_type, self._of(e.household, self._type[e.product])),
            ("product", self._by_household_product, self._of(e.household, e.product)),
        ):
            past = history.span(key, 0, week)
            times = history.weeks(past)
            numbers[f"{name}_recency"] = np.where(times > 0, week - history.last_week(past), _NEVER)
            numbers[f"{name}_frequency"] = times / years
            numbers[f"{name}_units"] = _ratio(history.total("units", past), times)

        past = self._by_household.span(e.household, 0, week)
        numbers["household_frequency"] = self._by_household.weeks(past) / years
        numbers["household_purchases"] = self._by_household.total("lines", past) / years
        numbers["household_coupons"] = self._by_household.total("coupons", past) / years

        past = self._by_product.span(e.product, 0, week)
        recent = self._by_product.span(e.product, np.maximum(week - 4, 0), week)
        bought = self._by_product.total("lines", past)
        paid, discount = self._by_product.total("paid", past), self._by_product.total("discount", past)
        units = self._by_product.total("units", past)
        numbers["popularity"] = bought / years
        numbers["popularity_recent"] = self._by_product.total("lines", recent)
        here = self._by_store_product.span(e.store * self._tables.products + e.product, 0, week)
        numbers["popularity_store"] = self._by_store_product.total("lines", here) / years
        numbers["popular_units"] = _ratio(units, bought)
        numbers["popular_coupons"] = _ratio(self._by_product.total("coupons", past), bought)
        numbers["usual_price"] = _ratio((paid + discount) / 100, units)
        numbers["usual_discount"] = _ratio(discount, paid + discount)

        received, running = self._tables.campaigns[e.household], self._tables.running[week]
        numbers["campaigns_received"] = _bits(received & self._tables.started[week])
        numbers["campaigns_running"] = _bits(received & running)
        numbers["offers"] = _bits(received & running & self._tables.couponed[e.product])
        return {name: values.astype(np.float32) for name, values in numbers.items()}

    def _of(self, household: Codes, code: Codes) -> Codes:
        # categories and types are fewer than twice the products, those of their own included
        return household * (2 * self._tables.products) + code

    def _visit_product(self, household: Codes, store: Codes, product: Codes) -> Codes:
        return (household * self._tables.promotions.stores + store) * self._tables.products + product


def _own_where_missing(codes: NDArray[np.int32]) -> Codes:
    own = int(codes.max()) + 1 + np.arange(len(codes))
    return np.where(codes < 0, own, codes)


def _ratio(part: NDArray[np.floating] | Codes, whole: Codes) -> NDArray[np.floating]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _bits(masks: Codes) -> Codes:
    count = np.zeros_like(masks)
    while masks.any():
        count += masks & 1
        masks = masks >> 1
    return count
