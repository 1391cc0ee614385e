"""Whole blocks are encoded as their description in plain Python says, row by row in float64."""

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.encoding import Encoding
from equipoise.errors import DataError
from tests.data.encoding.by_row import RefusedValue, encode_row, text_of

texts = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from(["", "a", "b", "7", "007", "日本"])
)
integers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9))
ids_in_floats = st.one_of(
    st.floats(-(2.0**53), 2.0**53, allow_nan=False), st.integers(-9, 9).map(float), st.just(math.nan)
)
numbers = st.floats(-1e30, 1e30, allow_nan=False)
times = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))
VALUES: Mapping[Any, st.SearchStrategy[Any]] = {
    pl.String: texts,
    pl.Int64: integers,
    pl.Int8: st.integers(-128, 127),
    pl.UInt64: st.integers(0, 2**64 - 1),
    pl.Float64: ids_in_floats,
    pl.Boolean: st.booleans(),
    pl.Date: st.dates(),
    pl.Datetime("us"): times,
    pl.Categorical: texts,
}


def columns(values: st.SearchStrategy[Any], size: int = 20) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, min_size=1, max_size=size)


def encoding_of(*features: Mapping[str, Any], **tables: Mapping[str, Any]) -> Encoding:
    content = {"version": 1, "tables": tables, "features": features, "tasks": [{"name": "click"}]}
    return Encoding.model_validate(content)


def assert_same(encoding: Encoding, frame: pl.DataFrame, tolerance: float = 0.0) -> None:
    content = encoding.model_dump(mode="json")
    expected = [encode_row(content, row) for row in frame.iter_rows(named=True)]
    ids, values = encoding.encode(frame)
    assert ids.tolist() == [row for row, _ in expected]
    np.testing.assert_allclose(
        values.numpy(), np.float32([row for _, row in expected]), rtol=2e3 * tolerance, atol=tolerance
    )


def table_for(column: pl.Series, hashed: bool) -> dict[str, Any]:
    """Return a hash, or a vocabulary of half of the column's texts."""
    if hashed:
        return {"kind": "hash", "rows": 50}
    found = dict.fromkeys(text for value in column.to_list() if (text := text_of(value)) is not None)
    return {"kind": "vocabulary", "values": list(found)[::2] or ["a"]}


def cardinality(table: Mapping[str, Any]) -> int:
    return table["rows"] if table["kind"] == "hash" else len(table["values"]) + 1


@pytest.mark.parametrize("dtype", VALUES, ids=str)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), hashed=st.booleans())
def test_a_category(dtype: Any, data: st.DataObject, hashed: bool) -> None:
    column = pl.Series("v", data.draw(columns(VALUES[dtype])), dtype=dtype)
    table = table_for(column, hashed)
    feature = {"kind": "category", "name": "v", "column": "v", "table": "v", "cardinality": cardinality(table)}
    assert_same(encoding_of(feature, v=table), pl.DataFrame([column]))


@pytest.mark.parametrize("dtype", [pl.String, pl.Int64, pl.Float64], ids=str)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), hashed=st.booleans(), length=st.integers(1, 4))
def test_categories_in_lists(dtype: Any, data: st.DataObject, hashed: bool, length: int) -> None:
    lists = data.draw(columns(st.lists(st.none() | VALUES[dtype], max_size=6), size=8))
    column = pl.Series("v", lists, dtype=pl.List(dtype))
    table = table_for(column.explode(), hashed)
    feature = {
        "kind": "categories", "name": "v", "column": "v", "separator": "|", "length": length, "pooling": "sum",
        "target": "", "table": "v", "cardinality": cardinality(table),
    }  # fmt: skip
    assert_same(encoding_of(feature, v=table), pl.DataFrame([column]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns(st.text("ab|, ", max_size=12)), st.sampled_from(["|", ", ", "||"]), st.integers(1, 4))
def test_categories_in_separated_text(values: list[str | None], separator: str, length: int) -> None:
    feature = {
        "kind": "categories", "name": "v", "column": "v", "separator": separator, "length": length, "pooling": "mean",
        "target": "", "table": "v", "cardinality": 3,
    }  # fmt: skip
    encoding = encoding_of(feature, v={"kind": "vocabulary", "values": ["a", "b"]})
    assert_same(encoding, pl.DataFrame({"v": values}, schema={"v": pl.String}))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.none() | texts, st.none() | integers, st.none() | ids_in_floats), min_size=1, max_size=20))
def test_a_cross(rows: list[tuple[Any, ...]]) -> None:
    frame = pl.DataFrame(rows, schema={"a": pl.String, "b": pl.Int64, "c": pl.Float64}, orient="row")
    assert_same(encoding_of({"kind": "cross", "name": "x", "of": ("a", "b", "c"), "rows": 1000}), frame)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    columns(numbers | st.just(math.nan)), st.sampled_from(["none", "log1p"]), st.floats(-1e9, 1e9), st.floats(1e-3, 1e9)
)
def test_a_number(values: list[float | None], transform: str, mean: float, deviation: float) -> None:
    feature = {
        "kind": "number", "name": "x", "column": "x", "transform": transform, "mean": mean, "deviation": deviation,
        "indicator": True,
    }  # fmt: skip
    # log1p may differ in the last digit between libraries
    tolerance = 1e-10 if transform == "log1p" else 0.0
    assert_same(encoding_of(feature), pl.DataFrame({"x": values}, schema={"x": pl.Float64}), tolerance)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns(numbers | st.integers(-5, 5).map(float)), st.sets(st.integers(-5, 5).map(float) | numbers, max_size=8))
def test_bins(values: list[float | None], edges: set[float]) -> None:
    feature = {"kind": "bins", "name": "x", "column": "x", "edges": tuple(sorted(edges))}
    assert_same(encoding_of(feature), pl.DataFrame({"x": values}, schema={"x": pl.Float64}))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(columns(st.lists(numbers, min_size=3, max_size=3) | st.just([])))
def test_a_vector(values: list[list[float] | None]) -> None:
    feature = {"kind": "vector", "name": "e", "column": "e", "width": 3, "separator": ","}
    frame = pl.DataFrame({"e": values}, schema={"e": pl.List(pl.Float64)})
    assert_same(encoding_of(feature), frame)
    assert_same(encoding_of(feature), frame.select(pl.col("e").cast(pl.List(pl.String)).list.join(",")))


PARTS = ("hour", "weekday", "day", "month")


def parts_of(unit: str = "s", text_format: str | None = None) -> Encoding:
    parts = [
        {"kind": "time", "name": part, "column": "t", "part": part, "unit": unit, "format": text_format}
        for part in PARTS
    ]
    return encoding_of(*parts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(columns(times))
def test_parts_of_a_time(values: list[datetime | None]) -> None:
    frame = pl.DataFrame({"t": values}, schema={"t": pl.Datetime("us")})
    assert_same(parts_of(), frame)
    assert_same(parts_of(), frame.select(pl.col("t").dt.strftime("%Y-%m-%dT%H:%M:%S%.f")))
    assert_same(parts_of(), frame.select(pl.col("t").dt.date()))
    assert_same(parts_of("us"), frame.select(pl.col("t").dt.epoch("us")))
    assert_same(parts_of("ms"), frame.select(pl.col("t").dt.epoch("ms").cast(pl.Float64)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(columns(times.filter(lambda time: time.year >= 1970)), st.integers(-14 * 60, 14 * 60))
def test_parts_of_a_time_with_an_offset(values: list[datetime | None], minutes: int) -> None:
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    frame = pl.DataFrame({"t": [None if time is None else f"{time:%Y-%m-%d %H:%M}{sign}{hours:02}:{rest:02}"
                                for time in values]}, schema={"t": pl.String})  # fmt: skip
    try:
        assert_same(parts_of(), frame)
    except RefusedValue:
        with pytest.raises(DataError):
            parts_of().encode(frame)


@pytest.mark.parametrize(
    "text_format",
    ["%Y-%m-%d", "%d/%m/%y", "%Y%m%d%H", "%b %d, %Y %I:%M %p", "%B %d %Y", "%j-%Y %H:%M:%S", "%Y%m%d", "%y%m%d%H"],
)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(columns(st.datetimes(datetime(1970, 1, 1), datetime(2068, 12, 31))))
def test_parts_of_a_time_in_a_format(text_format: str, values: list[datetime | None]) -> None:
    written = [None if time is None else time.strftime(text_format) for time in values]
    assert_same(parts_of(text_format=text_format), pl.DataFrame({"t": written}, schema={"t": pl.String}))


def test_times_of_a_zone_are_brought_to_utc() -> None:
    frame = pl.DataFrame({"t": [datetime(2026, 7, 1, 23, 30, tzinfo=UTC)]}).with_columns(
        pl.col("t").dt.convert_time_zone("Asia/Tokyo")
    )
    ids, _ = parts_of().encode(frame)
    assert ids.tolist() == [[24, 3, 1, 7]]


def test_float32_and_decimal_have_the_text_of_their_digits() -> None:
    feature = {"kind": "category", "name": "v", "column": "v", "table": "v", "cardinality": 4}
    encoding = encoding_of(feature, v={"kind": "vocabulary", "values": ["0.1", "3", "1e-05"]})
    float32 = pl.DataFrame({"v": pl.Series([0.1, 3.0, 1e-5, None], dtype=pl.Float32)})
    assert encoding.encode(float32)[0].flatten().tolist() == [1, 2, 3, 0]
    decimal = pl.DataFrame({"v": pl.Series(["0.10", "3.00", "30.00"]).cast(pl.Decimal(10, 2))})
    assert encoding.encode(decimal)[0].flatten().tolist() == [1, 2, 0]


def test_a_date_is_one_value_as_date_and_as_text() -> None:
    feature = {"kind": "category", "name": "v", "column": "v", "table": "v", "cardinality": 2}
    encoding = encoding_of(feature, v={"kind": "vocabulary", "values": ["2026-01-31"]})
    for column in (pl.Series([date(2026, 1, 31)]), pl.Series(["2026-01-31"])):
        assert encoding.encode(pl.DataFrame({"v": column}))[0].tolist() == [[1]]
