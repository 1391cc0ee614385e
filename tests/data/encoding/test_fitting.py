"""An encoding is fitted to the train rows alone, in one pass, whatever the blocks."""

import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.encoding import Encoding, fit, fitting
from equipoise.data.encoding.encoder import Encoder
from equipoise.data.tables.config import (
    CategoriesConfig,
    CategoryConfig,
    CrossConfig,
    FeatureConfig,
    NumberConfig,
    TimePartConfig,
    VectorConfig,
)
from equipoise.errors import DataError
from equipoise.schema import Categorical, Categories, Numeric, Sampled, Task, Vector

TASKS = (Task("click"), Task("buy", after="click"))


def fitted(columns: Mapping[str, Any] | pl.DataFrame, **features: FeatureConfig) -> Encoding:
    return fit(pl.DataFrame(columns, strict=False).lazy(), features, TASKS)


def encoder_of(config: FeatureConfig, values: Any) -> Any:
    return fitted({"v": values}, v=config).features[0]


def vocabulary_of(encoding: Encoding, table: str) -> list[str]:
    return json.loads(encoding.to_json())["tables"][table]["values"]


FEATURES: dict[str, FeatureConfig] = {
    "video": CategoryConfig(column="video", min_count=2),
    "city": CategoryConfig(column="city", rows=30),
    "history": CategoriesConfig(column="history", length=4, pooling="attention", target="video", table="video"),
    "tags": CategoriesConfig(column="tags", separator=" ", length=3, min_count=1),
    "age": NumberConfig(column="age"),
    "price": NumberConfig(column="price", scale="log1p"),
    "score": NumberConfig(column="score", scale="none", indicator=True),
    "seconds": NumberConfig(column="seconds", scale="bins", bins=8),
    "image": VectorConfig(column="image", width=2),
    "city_x_video": CrossConfig(of=("city", "video"), rows=100),
    "hour": TimePartConfig(column="time", part="hour", unit="s"),
}


def logs(rows: int, seed: int = 0) -> pl.DataFrame:
    draw = random.Random(seed)
    none_or = lambda value, share=0.1: None if draw.random() < share else value  # noqa: E731
    return pl.DataFrame(
        {
            "video": [none_or(int(draw.paretovariate(1))) for _ in range(rows)],
            "city": [none_or(draw.choice(["Rīga", "Köln", "日本"])) for _ in range(rows)],
            "history": [[int(draw.paretovariate(1)) for _ in range(draw.randrange(7))] for _ in range(rows)],
            "tags": [" ".join(draw.choices("abc", k=draw.randrange(5))) for _ in range(rows)],
            "age": [draw.gauss(40, 12) for _ in range(rows)],
            "price": [none_or(draw.lognormvariate(2, 1)) for _ in range(rows)],
            "score": [none_or(draw.random()) for _ in range(rows)],
            "seconds": [none_or(draw.randrange(1000)) for _ in range(rows)],
            "image": [[draw.random(), draw.random()] for _ in range(rows)],
            "time": [datetime(2026, 1, 1) + timedelta(minutes=draw.randrange(10**5)) for _ in range(rows)],
        }
    )


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    return fit(logs(2000).lazy(), FEATURES, TASKS, Sampled("buy", 0.1))


def test_each_kind_becomes_its_feature_of_the_schema(encoding: Encoding) -> None:
    schema = encoding.schema_of_batches
    videos = len(vocabulary_of(encoding, "video")) + 1
    assert list(schema.categorical) == [
        Categorical("video", videos),
        Categorical("city", 30),
        Categories("history", videos, 4, "attention", "video", "video"),
        Categories("tags", 4, 3),
        Categorical("seconds", 9),
        Categorical("city_x_video", 100),
        Categorical("hour", 25),
    ]
    assert list(schema.numeric) == [Numeric("age"), Vector("price", 2), Vector("score", 2), Vector("image", 2)]
    assert list(schema.tasks) == list(TASKS)
    assert schema.sampled == Sampled("buy", 0.1)
    assert encoding.columns == ("video", "city", "history", "tags", "age", "price", "score", "seconds", "image", "time")


def test_blocks_are_encoded_as_the_whole(encoding: Encoding) -> None:
    frame = logs(500, seed=1)
    whole = encoding.encode(frame)
    for size in (1, 7, 499):
        blocks = [encoding.encode(frame.slice(start, size)) for start in range(0, 500, size)]
        for expected, parts in zip(whole, zip(*blocks, strict=True), strict=True):
            assert np.array_equal(np.concatenate(parts), expected)


def test_rows_in_threads_are_encoded_as_without(encoding: Encoding) -> None:
    frame = pl.concat([logs(500, seed=1)] * 40)
    one = encoding.encode(frame.head(500))
    for expected, found in zip(one, encoding.encode(frame), strict=True):
        assert np.array_equal(found, expected.repeat(40, 1))


def test_encoding_other_rows_changes_nothing(encoding: Encoding) -> None:
    before = encoding.to_json()
    encoding.encode(logs(300, seed=9))
    assert encoding.to_json() == before


def test_the_same_comes_back_from_json(encoding: Encoding) -> None:
    again = Encoding.from_json(encoding.to_json())
    assert again == encoding
    frame = logs(300, seed=2)
    for found, expected in zip(again.encode(frame), encoding.encode(frame), strict=True):
        assert np.array_equal(found, expected)


def test_a_change_of_any_part_makes_another_encoding(encoding: Encoding) -> None:
    content = json.loads(encoding.to_json())
    content["tables"]["tags"]["values"].reverse()
    assert Encoding.from_json(json.dumps(content)) != encoding


@pytest.mark.parametrize("block_rows", [1, 64, 1000])
def test_blocks_of_any_size_fit_the_same(encoding: Encoding, block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_BLOCK_ROWS", block_rows)
    found = fit(logs(2000 if block_rows > 1 else 100).lazy(), FEATURES, TASKS, Sampled("buy", 0.1))
    expected = encoding if block_rows > 1 else fit(logs(100).lazy(), FEATURES, TASKS, Sampled("buy", 0.1))
    assert found.tables == expected.tables
    for one, other in zip(found.features, expected.features, strict=True):
        assert moments_in_ten_digits(one) == moments_in_ten_digits(other)


def moments_in_ten_digits(encoder: Encoder) -> dict[str, Any]:
    content = encoder.model_dump()
    return {key: f"{value:.10g}" if key in {"mean", "deviation"} else value for key, value in content.items()}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["a", "b", "ab", "日本", "", None, "7"]), min_size=1), st.integers(1, 4))
def test_a_vocabulary_is_ordered_by_falling_count_then_by_value(values: list[str | None], min_count: int) -> None:
    counts = Counter(value for value in values if value)
    kept = sorted(
        (text for text, count in counts.items() if count >= min_count), key=lambda text: (-counts[text], text)
    )
    column = pl.Series("v", values, dtype=pl.String)
    if kept:
        encoding = fitted(pl.DataFrame([column]), v=CategoryConfig(column="v", min_count=min_count))
        assert vocabulary_of(encoding, "v") == kept
    else:
        with pytest.raises(DataError, match=r"min_count|missing in all"):
            fitted(pl.DataFrame([column]), v=CategoryConfig(column="v", min_count=min_count))


def test_a_shared_vocabulary_counts_all_features_that_read_it() -> None:
    encoding = fitted(
        {"video": [1, 2, 2], "history": ["3|4|1|5", "3", ""]},
        video=CategoryConfig(column="video", min_count=2),
        history=CategoriesConfig(column="history", length=3, table="video"),
    )
    # of "3|4|1|5" the last three items count: those that a model sees
    assert vocabulary_of(encoding, "video") == ["1", "2"]
    encoding = fitted(
        {"video": [1, 2, 2], "history": ["3|4|1", "3", ""]},
        video=CategoryConfig(column="video", table="history"),
        history=CategoriesConfig(column="history", length=3, min_count=1),
    )
    assert vocabulary_of(encoding, "history") == ["1", "2", "3", "4"]
    assert encoding.encode(pl.DataFrame({"video": [4], "history": ["9|3"]}))[0].tolist() == [[4, 0, 3, -1]]


def test_numbers_and_texts_of_one_value_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_BLOCK_ROWS", 2)
    encoding = fitted(
        {"video": [7.0, 8.0, 7.5, 7.0, 8.0, 8.0], "history": ["7.5", "7.5", "", "x", "x", "x"]},
        video=CategoryConfig(column="video", min_count=2),
        history=CategoriesConfig(column="history", length=3, table="video"),
    )
    assert vocabulary_of(encoding, "video") == ["7.5", "8", "x", "7"]


def test_a_shared_hash_has_one_size() -> None:
    encoding = fitted(
        {"video": [1], "history": ["1"]},
        video=CategoryConfig(column="video", rows=77),
        history=CategoriesConfig(column="history", length=3, table="video"),
    )
    assert [feature.cardinality for feature in encoding.schema_of_batches.categorical] == [77, 77]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 6)) | st.none() | st.just(math.nan), min_size=1),
    st.sampled_from(["standard", "log1p"]),
)
def test_the_moments_are_those_of_the_present_values(values: list[float | None], scale: Any) -> None:
    present = [value for value in values if value is not None and not math.isnan(value)]
    if not present:
        return
    if scale == "log1p":
        present = [math.copysign(math.log1p(abs(value)), value) for value in present]
    encoder = encoder_of(NumberConfig(column="v", scale=scale), pl.Series(values, dtype=pl.Float64))
    size = max(map(abs, present))
    assert encoder.mean == pytest.approx(fmean(present), rel=1e-12, abs=1e-12 * size)
    deviation = pstdev(present)
    if len(set(present)) == 1:
        assert encoder.deviation == 1.0
    else:
        assert encoder.deviation == pytest.approx(deviation, rel=1e-9, abs=1e-12 * size)
    assert encoder.indicator == (len(present) < len(values))


def test_a_constant_column_becomes_zero() -> None:
    for value in (0.1, 1e15, -3.0):
        encoding = fitted({"v": [value] * 1000}, v=NumberConfig(column="v"))
        assert encoding.encode(pl.DataFrame({"v": [value, value + 2]}))[1].tolist() == [[0.0], [2.0]]
    assert encoder_of(NumberConfig(column="v", scale="bins"), [4.0] * 9).edges == ()


def test_an_indicator_stands_where_train_rows_miss_values_or_as_asked() -> None:
    for values, asked, expected in (([1.0, None], None, True), ([1.0, 2.0], None, False),
                                    ([1.0, None], False, False), ([1.0, 2.0], True, True)):  # fmt: skip
        assert encoder_of(NumberConfig(column="v", indicator=asked), values).indicator == expected
    assert encoder_of(NumberConfig(column="v"), pl.Series([1.0, math.nan])).indicator


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(-20, 20) | st.floats(-30, 30), min_size=1), st.integers(2, 9))
def test_the_edges_of_bins_are_quantiles_above_the_least_value(values: list[float], bins: int) -> None:
    ranked = sorted(map(float, values))
    quantiles = {ranked[math.ceil(part / bins * (len(ranked) - 1) - 1e-9)] for part in range(1, bins)}
    expected = sorted(quantiles - {ranked[0]})
    assert (
        list(encoder_of(NumberConfig(column="v", scale="bins", bins=bins), list(map(float, values))).edges) == expected
    )


def test_bins_hold_equal_shares_of_the_rows() -> None:
    values = np.random.default_rng(0).lognormal(size=10_000)
    encoding = fitted({"v": values}, v=NumberConfig(column="v", scale="bins", bins=10))
    ids = encoding.encode(pl.DataFrame({"v": values}))[0].numpy().ravel()
    assert np.bincount(ids).tolist() == pytest.approx([0] + [1000] * 10, abs=1)


def test_quantiles_of_many_rows_come_from_a_sample_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).permutation(50_000).astype(float)
    config = NumberConfig(column="v", scale="bins", bins=4)
    monkeypatch.setattr(fitting, "_SAMPLE_ROWS", 5000)
    sampled = encoder_of(config, values).edges
    assert sampled == pytest.approx([12_500, 25_000, 37_500], abs=1500)  # the deviation of a median is 335
    monkeypatch.setattr(fitting, "_BLOCK_ROWS", 777)
    assert encoder_of(config, values).edges == sampled


def test_a_sorted_column_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_SAMPLE_ROWS", 5000)
    edges = encoder_of(NumberConfig(column="v", scale="bins", bins=4), np.arange(50_000.0)).edges
    assert edges == pytest.approx([12_500, 25_000, 37_500], abs=1500)


def test_numbers_as_text_are_numbers() -> None:
    encoder = encoder_of(NumberConfig(column="v"), ["1", "3.0", ""])
    assert (encoder.mean, encoder.deviation, encoder.indicator) == (2.0, 1.0, True)


FAULTS: list[tuple[FeatureConfig, list[Any], str]] = [
    (CategoryConfig(column="v", min_count=3), ["a", "a", "b"],
     r"Feature 'v': expected values that occur at least 3 times in the train rows \(min_count\), found 2 at most"),
    (CategoriesConfig(column="v"), [[], []], r"at least 5 times in the train rows \(min_count\), found 0 at most"),
    (CategoryConfig(column="v"), [None, None], "column 'v' is missing in all 2 train rows"),
    (CategoryConfig(column="v"), ["", ""], "column 'v' is missing in all 2 train rows"),
    (NumberConfig(column="v"), [math.nan], "column 'v' is missing in all 1 train rows"),
    (NumberConfig(column="v"), ["3", "x"], "column 'v': expected numbers, found 'x' in row 1"),
    (NumberConfig(column="v"), [1.0, math.inf], "expected finite numbers, or null for missing, found inf in row 1"),
    (NumberConfig(column="v"), [1e300, -1e300], "too large to standardise"),
    (NumberConfig(column="v"), [[1.0]], "expected numbers, found List.*use the kind 'vector'"),
    (NumberConfig(column="v"), [datetime(2026, 1, 1)], "expected numbers, found Datetime.*use the kind 'time'"),
    (NumberConfig(column="w"), [1.0], "Expected the column 'w', found only v"),
    (CategoryConfig(column="v"), [["a"]], "use the kind 'categories'"),
    (CategoryConfig(column="v", table="w"), ["a"], "table should name a feature of ids"),
    (TimePartConfig(column="v", format="%H"), ["1"], "Feature 'v': expected a format with a year, a month and a day"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "values", "message"), FAULTS, ids=[message[:40] for *_, message in FAULTS])
def test_bad_train_rows_get_one_message(config: FeatureConfig, values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted({"v": values}, v=config)


def test_no_train_rows_are_refused() -> None:
    with pytest.raises(DataError, match="Expected train rows"):
        fit(pl.LazyFrame(schema={"v": pl.Float64}), {"v": NumberConfig(column="v")}, TASKS)
