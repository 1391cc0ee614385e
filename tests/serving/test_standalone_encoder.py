"""The encoder of an export gives what the training's encoding gives, for every kind of feature and value."""

import datetime
import json
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.encoding import Encoding
from equipoise.errors import DataError
from equipoise.serving.standalone import encoder as standalone
from equipoise.serving.standalone.encoder import Encoder, EncodingError
from tests.data.encoding.golden import ENCODED, REFUSED, rows_of

NAN = st.just(math.nan)
WORDS = st.text("ab7|é \x1f", max_size=4)
ISO = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30))

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "words": WORDS,
    "whole": st.integers(-5, 8) | st.integers(-(2**63), 2**63 - 1),
    "floats": st.sampled_from([3.0, -0.0, 0.1, 7.5, 1e-7]) | st.floats(-(2.0**53), 2.0**53) | NAN,
    "flags": st.booleans(),
    "dates": st.dates(),
    "times": st.datetimes() | st.datetimes().map(lambda time: time.replace(microsecond=0)),
    "utc": st.datetimes(datetime.datetime(1, 1, 3), datetime.datetime(9999, 12, 29), timezones=st.just(datetime.UTC)),
    "decimals": st.decimals(-1000, 1000, places=3, allow_nan=False),
    "clock": st.times().map(lambda time: time.replace(microsecond=0)),
}
"""Values of columns that have a text, by type."""

NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "whole": VALUES["whole"],
    "floats": st.floats(-1e30, 1e30) | NAN,
    "flags": st.booleans(),
    "decimals": VALUES["decimals"],
    "text": st.one_of(
        st.integers(-99, 99).map(str),
        st.floats(-1e9, 1e9).map(str),
        st.sampled_from(["", ".5", "5.", "+3", "nan", "1E3"]),
    ),
}

TIMES: dict[str, st.SearchStrategy[Any]] = {
    "text": ISO.map(lambda time: time.replace(microsecond=0).isoformat())
    | ISO.map(lambda time: time.date().isoformat())
    | ISO.map(lambda time: f"{time:%Y-%m-%d %H:%M}".rjust(16, "0"))
    | ISO.map(lambda time: f"{time.isoformat(timespec='milliseconds')}+05:30")
    | st.just(""),
    "dates": VALUES["dates"],
    "times": VALUES["times"],
    "utc": VALUES["utc"],
    "whole": st.integers(-62_135_596_800, 253_402_300_799),
    "floats": st.floats(-62_135_596_800, 253_402_300_798) | NAN,
}

VOCABULARY = {"kind": "vocabulary", "values": ["a", "7", "0.1", "true", "2020-01-01", "3", "ab", "é"]}


def encoding(*features: dict[str, Any]) -> Encoding:
    used = {feature["table"] for feature in features if "table" in feature}
    tables = {"words": VOCABULARY, "hashed": {"kind": "hash", "rows": 11}}
    return Encoding.from_json(
        json.dumps({
            "version": 1, "tables": {name: tables[name] for name in tables if name in used},
            "features": features, "tasks": [{"name": "click"}], "sampled": None,
        })
    )  # fmt: skip


def category(name: str, table: str) -> dict[str, Any]:
    cardinality = len(VOCABULARY["values"]) + 1 if table == "words" else 11
    return {"kind": "category", "name": name, "column": "x", "table": table, "cardinality": cardinality}


def categories(name: str, column: str, table: str, length: int, **more: Any) -> dict[str, Any]:
    return {
        **category(name, table), "kind": "categories", "column": column, "separator": "|", "length": length,
        "pooling": "mean", "target": "", **more,
    }  # fmt: skip


def number(name: str, transform: str, *, indicator: bool) -> dict[str, Any]:
    return {
        "kind": "number", "name": name, "column": "x", "transform": transform, "mean": 1.25, "deviation": 3.5,
        "indicator": indicator,
    }  # fmt: skip


def assert_same(whole: Encoding, column: list[Any], *, dtype: pl.DataType | None = None, **others: list[Any]) -> None:
    frame = pl.DataFrame({"x": pl.Series(column, dtype=dtype), **others})
    rows = [dict(zip(("x", *others), values, strict=True)) for values in zip(column, *others.values(), strict=True)]
    encoder = Encoder(json.loads(whole.to_json()))
    try:
        expected_ids, expected_numbers = whole.encode(frame)
    except DataError:
        with pytest.raises(EncodingError):
            encoder.encode(rows)
        return
    ids, numbers = encoder.encode(rows)
    assert encoder.columns == whole.columns
    assert encoder.widths == (expected_ids.shape[1], expected_numbers.shape[1])
    assert ids == expected_ids.tolist()
    found = torch.tensor(numbers, dtype=torch.float32).reshape(len(rows), -1)
    torch.testing.assert_close(found, expected_numbers.reshape(len(rows), -1), rtol=3e-7, atol=0)


@pytest.mark.parametrize("kind", VALUES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ids_of_single_values(kind: str, data: st.DataObject) -> None:
    column = data.draw(st.lists(st.none() | VALUES[kind], min_size=1, max_size=6))
    other = data.draw(st.lists(st.none() | WORDS, min_size=len(column), max_size=len(column)))
    cross = {"kind": "cross", "name": "cross", "of": ["x", "y"], "rows": 101}
    items = categories("items", "x", "words", 2)
    whole = encoding(category("words", "words"), category("hashed", "hashed"), cross, items)
    dtype = pl.Decimal(12, 3) if kind == "decimals" else None
    assert_same(whole, column, dtype=dtype, y=other)


@pytest.mark.parametrize("kind", ["words", "whole", "floats", "flags"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ids_of_lists(kind: str, data: st.DataObject) -> None:
    lists = st.none() | st.lists(st.none() | VALUES[kind], max_size=5)
    column = data.draw(st.lists(lists, min_size=1, max_size=5))
    inner = {"words": pl.String, "whole": pl.Int64, "floats": pl.Float64, "flags": pl.Boolean}[kind]
    whole = encoding(categories("words", "x", "words", 3), categories("hashed", "x", "hashed", 1))
    assert_same(whole, column, dtype=pl.List(inner))


@pytest.mark.parametrize("kind", NUMBERS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_numbers(kind: str, data: st.DataObject) -> None:
    column = data.draw(st.lists(st.none() | NUMBERS[kind], min_size=1, max_size=6))
    bins = {"kind": "bins", "name": "bins", "column": "x", "edges": [-3.5, 0.0, 1.0, 7.0]}
    features = (
        number("plain", "none", indicator=False),
        bins,
        number("log", "log1p", indicator=False),
        number("indicated", "none", indicator=True),
    )
    assert_same(encoding(*features), column, dtype=pl.Decimal(12, 3) if kind == "decimals" else None)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), separated=st.booleans())
def test_vectors(data: st.DataObject, separated: bool) -> None:
    vectors = st.none() | st.just([]) | st.lists(st.floats(width=32, allow_infinity=False), min_size=3, max_size=3)
    column = data.draw(st.lists(vectors, min_size=1, max_size=5))
    dtype: Any = pl.List(pl.Float64)
    if separated:
        column, dtype = [None if vector is None else " ".join(map(str, vector)) for vector in column], pl.String
    vector = {"kind": "vector", "name": "image", "column": "x", "width": 3, "separator": " "}
    assert_same(encoding(vector), column, dtype=dtype)


@pytest.mark.parametrize("part", ["hour", "weekday", "day", "month"])
@pytest.mark.parametrize("kind", TIMES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_parts_of_times(kind: str, part: str, data: st.DataObject) -> None:
    column = data.draw(st.lists(st.none() | TIMES[kind], min_size=1, max_size=5))
    time = {"kind": "time", "name": "part", "column": "x", "part": part, "unit": "s", "format": None}
    assert_same(encoding(time), column)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@settings(max_examples=30, deadline=None)
@given(seconds=st.floats(-2e9, 4e9), ticks=st.integers(0, 999_999_999))
def test_times_in_units(unit: str, seconds: float, ticks: int) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    time = {"kind": "time", "name": "part", "column": "x", "part": "hour", "unit": unit, "format": None}
    assert_same(encoding(time), [int(seconds) * per_second + ticks % per_second])
    assert_same(encoding(time), [seconds * per_second])


FORMATS = [
    ("%d/%m/%Y", "31/12/2025"),
    ("%Y%m%d %H:%M", "20240229 23:59"),
    ("%d %b %Y %I:%M %p", "01 Feb 2026 12:05 AM"),
    ("%d/%m/%Y", "2025-12-31"),
]


@pytest.mark.parametrize(("form", "text"), FORMATS)
def test_times_in_a_format_of_their_own(form: str, text: str) -> None:
    for part in ("hour", "day", "month"):
        time = {"kind": "time", "name": "part", "column": "x", "part": part, "unit": "s", "format": form}
        assert_same(encoding(time), [text, None])


ROWS = [
    ({}, "Row 1: expected the columns x; x is not there"),
    (["a"], r"Row 1: expected names and values, found \['a'\]"),
    ({"x": {}}, "Row 1: feature '(f|words)', column 'x': expected .*, found {}"),
    ({"x": math.inf}, "Row 1: feature '(f|words)', column 'x': expected .*, found inf"),
]


@pytest.mark.parametrize(
    "feature", [category("words", "words"), number("f", "none", indicator=True)], ids=["id", "number"]
)
@pytest.mark.parametrize(("row", "message"), ROWS)
def test_a_bad_row_is_named(feature: dict[str, Any], row: Any, message: str) -> None:
    encoder = Encoder(json.loads(encoding(feature).to_json()))
    with pytest.raises(EncodingError, match=message):
        encoder.encode([{"x": 1}, row])


WRONG = [
    (number("f", "none", indicator=False), "3 4"),
    (number("f", "none", indicator=False), "1e999"),
    (number("f", "none", indicator=False), "infinity"),
    (number("f", "none", indicator=False), " 3"),
    (number("f", "none", indicator=False), "1_000"),
    (number("f", "none", indicator=False), "٣"),
    (number("f", "none", indicator=False), 1e40),
    (category("hashed", "hashed"), 2.0**54),
    ({"kind": "vector", "name": "f", "column": "x", "width": 2, "separator": " "}, "1 2 3"),
    ({"kind": "vector", "name": "f", "column": "x", "width": 2, "separator": " "}, [1.0, None]),
    ({"kind": "vector", "name": "f", "column": "x", "width": 2, "separator": None}, "1 2"),
    ({"kind": "time", "name": "f", "column": "x", "part": "day", "unit": "s", "format": None}, "2026-13-01"),
    ({"kind": "time", "name": "f", "column": "x", "part": "day", "unit": "s", "format": None}, "2026-12-01 24:00"),
    ({"kind": "time", "name": "f", "column": "x", "part": "day", "unit": "s", "format": None}, 1e15),
    ({"kind": "time", "name": "f", "column": "x", "part": "day", "unit": "s", "format": None}, True),
]


@pytest.mark.parametrize(("feature", "value"), WRONG)
def test_both_refuse_the_same_values(feature: dict[str, Any], value: Any) -> None:
    whole = encoding(feature)
    with pytest.raises(DataError):
        whole.encode(pl.DataFrame({"x": [value]}))
    with pytest.raises(EncodingError):
        Encoder(json.loads(whole.to_json())).encode([{"x": value}])


def test_unicode_that_cannot_be_written_is_refused() -> None:
    encoder = Encoder(json.loads(encoding(category("hashed", "hashed")).to_json()))
    with pytest.raises(EncodingError, match="text in Unicode"):
        encoder.encode([{"x": "\ud800"}])


def test_another_version_and_an_unknown_kind_are_refused() -> None:
    with pytest.raises(EncodingError, match="Expected an encoding of version 1, found 2"):
        Encoder({"version": 2})
    with pytest.raises(EncodingError, match="'f' is of the unknown kind 'sound'"):
        Encoder({"version": 1, "tables": {}, "features": [{"kind": "sound", "name": "f"}]})


def test_it_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import runpy; runpy.run_path(sys.argv[1]);"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    path = str(Path(standalone.__file__))
    done = subprocess.run([sys.executable, "-I", "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("case", ENCODED, ids=lambda case: case["name"])
def test_the_golden_cases_are_encoded(case: dict[str, Any]) -> None:
    ids, numbers = Encoder(case["encoding"]).encode(rows_of(case))
    assert ids == case["ids"]
    np.testing.assert_allclose(np.float32(numbers), np.float32(case["values"]), rtol=2e-7, atol=0)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["name"])
def test_the_golden_cases_are_refused(case: dict[str, Any]) -> None:
    (column,) = case["columns"]
    with pytest.raises(EncodingError, match=f"column '{column}'"):
        Encoder(case["encoding"]).encode(rows_of(case))


def test_decimals_read_as_they_are_written() -> None:
    whole = encoding(category("words", "words"))
    assert Encoder(json.loads(whole.to_json())).encode([{"x": Decimal("3.000")}, {"x": Decimal(7)}])[0] == [[6], [2]]
