"""An encoding says what it reads and gives, and refuses what it cannot use in one message."""

import json
from datetime import date
from typing import Any

import polars as pl
import pytest

from equipoise.data.encoding import Encoding
from equipoise.errors import DataError

NUMBER = {"kind": "number", "column": "age", "transform": "none", "mean": 1.0, "deviation": 2.0, "indicator": False}
CONTENT: dict[str, Any] = {
    "version": 1,
    "tables": {"zip": {"kind": "vocabulary", "values": ["rural", "urban"]}, "user": {"kind": "hash", "rows": 4}},
    "features": [
        {"kind": "category", "name": "zip", "column": "zip_code", "table": "zip", "cardinality": 3},
        {"kind": "category", "name": "user", "column": "user", "table": "user", "cardinality": 4},
        {**NUMBER, "name": "age"},
        {"kind": "bins", "name": "spent", "column": "spend", "edges": [0.5, 10.0, 25.0]},
        {"kind": "vector", "name": "image", "column": "image", "width": 2, "separator": None},
        {"kind": "cross", "name": "user_x_zip", "of": ["user", "zip_code"], "rows": 3},
        {"kind": "time", "name": "weekday", "column": "ts", "part": "weekday", "unit": "s", "format": None},
        {"kind": "time", "name": "hour", "column": "ts", "part": "hour", "unit": "s", "format": None},
        {"kind": "time", "name": "day", "column": "ts", "part": "day", "unit": "s", "format": None},
        {"kind": "time", "name": "month", "column": "ts", "part": "month", "unit": "s", "format": None},
        {
            "kind": "categories", "name": "zips", "column": "zips", "separator": "|", "length": 2, "pooling": "mean",
            "target": "", "table": "zip", "cardinality": 3,
        },
    ],
    "tasks": [{"name": "visit"}],
    "sampled": None,
}  # fmt: skip
FRAME: dict[str, Any] = {
    "zip_code": ["rural"], "user": [7], "age": [3], "spend": [1.5], "image": [[0.0, 1.0]], "ts": [0],
    "zips": ["urban|rural"],
}  # fmt: skip


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    return Encoding.from_json(json.dumps(CONTENT))


def test_it_says_which_columns_it_reads(encoding: Encoding) -> None:
    assert encoding.columns == tuple(FRAME)


def test_it_gives_the_columns_of_its_schema(encoding: Encoding) -> None:
    ids, values = encoding.encode(pl.DataFrame(FRAME))
    schema = encoding.schema_of_batches
    assert ids.shape == (1, len(schema.categorical_columns))
    assert values.shape == (1, len(schema.numeric_columns))
    assert schema.numeric_columns == ("age", "image[0]", "image[1]")


def test_a_table_without_rows_gives_none(encoding: Encoding) -> None:
    ids, values = encoding.encode(pl.DataFrame(FRAME).clear())
    assert ids.shape == (0, 10)
    assert values.shape == (0, 3)


def test_a_column_of_nulls_is_missing_everywhere(encoding: Encoding) -> None:
    frame = pl.DataFrame({column: [None, None] for column in FRAME})
    ids, values = encoding.encode(frame)
    assert ids.tolist() == [[0] * 8 + [-1, -1]] * 2
    assert not values.any()


def test_every_id_has_a_name(encoding: Encoding) -> None:
    for feature in encoding.schema_of_batches.categorical:
        assert len(encoding.value_names(feature.name)) == feature.cardinality
    assert encoding.value_names("zip") == encoding.value_names("zips") == ["missing or unseen", "rural", "urban"]
    assert encoding.value_names("user") == ["missing", "hash 1", "hash 2", "hash 3"]
    assert encoding.value_names("spent") == ["missing", "below 0.5", "0.5 to 10", "10 to 25", "from 25"]
    assert encoding.value_names("weekday")[1:3] == ["Monday", "Tuesday"]
    assert encoding.value_names("hour")[24] == "23:00"
    assert encoding.value_names("month")[12] == "December"
    assert encoding.value_names("age") == encoding.value_names("image") == []
    with pytest.raises(DataError, match=r"Expected a feature out of zip, user.*found 'zap'"):
        encoding.value_names("zap")


def test_a_missing_column_is_named_with_the_nearest_one(encoding: Encoding) -> None:
    with pytest.raises(
        DataError, match=r"Expected the column 'zip_code', found only zipcode, .*did you mean 'zipcode'"
    ):
        encoding.encode(pl.DataFrame(FRAME).rename({"zip_code": "zipcode"}))
    with pytest.raises(DataError, match=r"Expected the columns 'zip_code', 'user', .* found only none"):
        encoding.encode(pl.DataFrame())


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("age", ["3", "three", "four"],
         "Feature 'age', column 'age': expected numbers, found 'three' in row 101, counted from 0 (2 such"),
        ("age", [1.0, 2.0, float("-inf")], "expected finite numbers, or null for missing, found -inf in row 102"),
        ("age", [1e39], "expected numbers that float32 holds once scaled, found 1e+39 in row 100"),
        ("age", [date(2026, 1, 1)], "expected numbers, found Date; for a part of a time use the kind 'time'."),
        ("spend", [True, None, "x"], "expected numbers, found 'x' in row 102"),
        ("zip_code", [[1]], "expected text, numbers, booleans or dates, found List(Int64); for a list of values use"),
        ("zip_code", [1e20], "expected ids that a float holds exactly, up to 2^53 (store longer ones as whole numbers"),
        ("zip_code", [b"\xff"], "expected text in UTF-8, found b'\\xff' in row 100"),
        ("user", [{"a": 1}], "Feature 'user', column 'user': expected text, numbers, booleans or dates, found Struct"),
        ("image", [[1.0, 2.0], [1.0]], "expected vectors of 2 numbers (not 1), found [1.0] in row 101"),
        ("image", [None, [1.0, None]], "expected vectors without missing numbers, found None in row 101"),
        ("image", [[1.0, 2.0], [3.0, float("inf")]], "expected finite numbers, or null for missing, found inf"),
        ("image", ["1 2"], "expected lists of numbers, found String; state the separator of the numbers."),
        ("zips", [[1.5], [0.0, 1e17]], "(store longer ones as whole numbers or text), found 1e+17 in row 101"),
        ("ts", ["2026-01-31", "31.01.2026"], "expected times in the format 'ISO 8601', found '31.01.2026' in row 101"),
        ("ts", [0, 1_769_862_600_999], "in the years 1 to 9999 (in the unit 's'), found 1769862600999 in row 101"),
        ("ts", [True], "expected times: dates, numbers or text, found Boolean."),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_encoded_is_named_with_its_place(
    encoding: Encoding, column: str, values: list[Any], message: str
) -> None:
    if column == "spend":
        values = [None if value is None else str(value).lower() for value in values]
        values[0] = "1"
    frame = pl.DataFrame({name: [value[0]] * len(values) for name, value in FRAME.items()})
    with pytest.raises(DataError) as error:
        encoding.encode(frame.with_columns(pl.Series(column, values)), first_row=100)
    assert message in str(error.value)


def test_a_long_value_is_shortened(encoding: Encoding) -> None:
    with pytest.raises(DataError) as error:
        encoding.encode(pl.DataFrame({**FRAME, "age": ["x" * 10_000]}))
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "Expected an encoding of version 1, found version 2: update equipoise."),
        ({"version": "1.0"}, "Expected an encoding of version 1, found version '1.0'"),
        ({"scaler": {}}, "cannot be used: scaler: Extra inputs are not permitted."),
        ({"tasks": [{"name": "visit", "wait": 1}]}, "cannot be used: tasks.0: unknown key 'wait'."),
        ({"sampled": {"task": "visit", "rate": 0.1, "note": ""}}, "sampled: unknown key 'note'."),
        ({"tasks": []}, "at least one task"),
        ({"tables": {}}, "feature 'zip': expected a table 'zip' of 3 ids, found none"),
        ({"tables": CONTENT["tables"] | {"zip": {"kind": "vocabulary", "values": ["a"]}}}, "found one of 2"),
        ({"tables": CONTENT["tables"] | {"zip": {"kind": "vocabulary", "values": ["a", "a"]}}}, "different texts"),
        (
            {"tables": CONTENT["tables"] | {"zip": {"kind": "vocabulary", "values": ["a", 1]}}},
            "list of different texts",
        ),
        ({"tables": CONTENT["tables"] | {"zip": {"kind": "vocabulary", "values": []}}}, "list of different texts"),
        ({"tables": CONTENT["tables"] | {"other": {"kind": "hash", "rows": 9}}}, "found also other"),
        ({"tables": CONTENT["tables"] | {"user": {"kind": "hash", "rows": 1}}}, "greater than or equal to 2"),
        ({"features": [{"kind": "number", "name": "age"}], "tables": {}}, "features.0.number.column: Field required"),
        ({"features": [{"kind": "word", "name": "age"}], "tables": {}}, "'word'"),
        ({"features": [{**NUMBER, "name": "age", "deviation": 0.0}], "tables": {}}, "deviation"),
        ({"features": [{**NUMBER, "name": "age", "note": ""}], "tables": {}}, "features.0.number.note"),
        ({"features": [{**NUMBER, "name": "age"}] * 2, "tables": {}}, "found twice: age"),
        ({"features": [{**CONTENT["features"][3], "edges": [2.0, 1.0]}], "tables": {}}, "ascending"),
        ({"features": [{**CONTENT["features"][6], "format": "%H"}], "tables": {}}, "a year, a month and a day"),
        ({"features": [{**CONTENT["features"][6], "format": "%s"}], "tables": {}}, "found %s"),
    ],
    ids=str,
)
def test_json_that_is_not_an_encoding_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        Encoding.from_json(json.dumps(CONTENT | change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(DataError, match="The JSON of an encoding cannot be used"):
        Encoding.from_json("{")
