"""Labels: columns and SQL expressions of every type, nested tasks resolved, faults with count, value and row."""

import re
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from numpy.typing import NDArray

from equipoise.data.tables.config import TableConfig
from equipoise.data.tables.frames import open_frame
from equipoise.data.tables.labels import Labels, expression_of
from equipoise.errors import DataError

NAN = float("nan")


def reader(frame: pl.DataFrame, tasks: dict[str, Any], **keys: Any) -> Labels:
    config = TableConfig(features={"f": "category"}, tasks=tasks, **keys)
    expressions = {name: expression_of(task.label, frame.columns, name) for name, task in config.tasks.items()}
    return Labels(open_frame(frame).table(), config, expressions)


def labels_of(frame: pl.DataFrame, tasks: dict[str, Any], **keys: Any) -> NDArray[np.float32]:
    found = reader(frame, tasks, **keys)
    values = found.read(frame, 0).values
    found.check()
    return values


def column(values: Any, label: str = "y", **task: Any) -> list[float]:
    return labels_of(pl.DataFrame({"y": values}), {"task": {"label": label, **task}})[:, 0].tolist()


@pytest.mark.parametrize(
    "values",
    [
        [1, 0, None],
        [True, False, None],
        [1.0, 0.0, NAN],
        pl.Series([1, 0, None], dtype=pl.UInt8),
        pl.Series([1, 0, None], dtype=pl.Decimal(4, 2)),
    ],
)
def test_a_binary_label_is_0_1_or_missing_in_any_type(values: Any) -> None:
    np.testing.assert_array_equal(column(values), [1, 0, NAN])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("y > 30", [0, 1, NAN]),
        ("NULLIF(y, 40) > 3", [1, NAN, NAN]),
        ("CASE WHEN y = 7 THEN 1 ELSE 0 END", [1, 0, 0]),
        ("y IS NULL", [0, 0, 1]),
        ("y IN (7, 8) AND y < 10", [1, 0, NAN]),
    ],
)
def test_a_label_may_be_an_expression(label: str, expected: list[float]) -> None:
    np.testing.assert_array_equal(column([7, 40, None], label), expected)


def test_nan_is_not_above_every_number() -> None:
    np.testing.assert_array_equal(column([31.0, NAN, 2.0], "y > 30"), [1, NAN, 0])


@pytest.mark.parametrize("name", ["like", "play time", "buy-now", "order", "x > 1"])
def test_a_column_may_have_any_name(name: str) -> None:
    found = labels_of(pl.DataFrame({name: [1, 0]}), {"task": name})
    assert found[:, 0].tolist() == [1, 0]


def test_words_of_sql_are_quoted_in_expressions() -> None:
    assert labels_of(pl.DataFrame({"order": [2, 0]}), {"task": '"order" > 1'})[:, 0].tolist() == [1, 0]
    with pytest.raises(DataError, match=r"SQL expression of columns, found 'order > 1'.*\"like\" > 0"):
        expression_of("order > 1", ["order"], "tasks.task.label")


@pytest.mark.parametrize("label", ["2 > 1", "y >", "SELECT y", "y; DROP", "*"])
def test_what_is_no_expression_of_columns_is_refused(label: str) -> None:
    with pytest.raises(DataError, match="place: expected a"):
        expression_of(label, ["y"], "place")


@pytest.mark.parametrize(
    "label",
    ["y > AVG(y)", "y = MAX(y)", "SUM(y) > 3", "ROW_NUMBER() OVER (ORDER BY y) > 2", "y > LAG(y) OVER (ORDER BY y)"],
)
def test_an_expression_that_looks_at_other_rows_is_refused(label: str) -> None:
    with pytest.raises(DataError, match="found one that looks at other rows"):
        column([1, 2, 3, 4], label)


def test_columns_of_an_expression_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match=r"tasks.task.label: 'y > 30' cannot be evaluated: "):
        column(["a", "b"], "y > 30")


def test_nested_labels_are_missing_where_the_parent_is_not_1() -> None:
    frame = pl.DataFrame({"click": [1, 1, 0, 0, None], "buy": [1, 0, 0, None, 0], "spend": [9.5, 0, 0, None, None]})
    tasks = {
        "spend": {"kind": "regression", "after": "buy"},
        "click": None,
        "buy": {"after": "click"},
        "buys": {"label": "buy", "after": "click", "over": "all"},
        "spends": {"kind": "regression", "label": "spend", "after": "buy", "over": "all"},
    }
    np.testing.assert_array_equal(
        labels_of(frame, tasks),
        [
            [9.5, 1, 1, 1, 9.5],
            [NAN, 1, 0, 0, 0],
            [NAN, 0, NAN, 0, 0],
            [NAN, 0, NAN, 0, 0],
            [NAN, NAN, NAN, NAN, NAN],
        ],
    )


def test_a_child_without_its_parent_is_refused_with_count_and_row() -> None:
    frame = pl.DataFrame({"click": [1, 0, 0], "buy": [1, 1, 1]})
    with pytest.raises(
        DataError, match=r"tasks.buy: expected no positive where 'click' is 0; found 2, the first 1 in row 1"
    ):
        labels_of(frame, {"click": None, "buy": {"after": "click"}})


def test_a_child_whose_parent_is_missing_is_noted() -> None:
    frame = pl.DataFrame({"click": [1, None, 0], "buy": [1, 1, 0]})
    found = reader(frame, {"click": None, "buy": {"after": "click"}})
    np.testing.assert_array_equal(found.read(frame, 0).values[:, 1], [1, NAN, NAN])
    (note,) = found.notes()
    assert note == (
        "1 labels of the task buy that are not 0 are left out: the label of its parent click is missing there."
    )


def test_sampled_negatives_stand_for_many_rows() -> None:
    frame = pl.DataFrame({"click": [1, 1, 0, None], "buy": [1, 0, 0, None]})
    tasks = {"click": None, "buy": {"after": "click"}}
    found = reader(frame, tasks, sampled={"task": "buy", "rate": 0.25}).read(frame, 0)
    assert found.weight.tolist() == [1, 4, 4, 4]
    assert reader(frame, tasks).read(frame, 0).weight.tolist() == [1] * 4


def test_faults_of_all_blocks_and_tasks_are_in_one_message() -> None:
    frame = pl.DataFrame({"a": [0, 1, -1, 1, -1], "b": [0, 5, 1, 1, 1], "c": [1.0, 2.0, -3.0, 1.0, float("inf")]})
    found = reader(frame, {"a": None, "b": None, "c": {"kind": "regression", "loss": "log"}})
    for first in (0, 2, 4):
        found.read(frame[first : first + 2], first)
    with pytest.raises(DataError) as caught:
        found.check()
    assert str(caught.value).splitlines() == [
        "Some labels cannot be used.",
        "  tasks.a: expected 0, 1, true, false or null; found 2 other values, the first -1 in row 2 (counted from 0) "
        'of The table. If -1 stands for a missing label, write `label: "NULLIF(a, -1)"`; if for a negative one, '
        '`label: "a = 1"`.',
        "  tasks.b: expected 0, 1, true, false or null; found 1 other values, the first 5 in row 1 (counted from 0) of "
        'The table. Write a condition, such as `label: "b > 0"`, or set `kind: regression`.',
        "  tasks.c: expected finite numbers or null; found 1 other values, the first inf in row 4 (counted from 0) of "
        "The table.",
        "  tasks.c: the loss log needs numbers from 0 up; found 1 negative ones, the first -3.0 in row 2 (counted from "
        "0) of The table. Take another loss.",
    ]


def test_text_is_no_label() -> None:
    with pytest.raises(
        DataError, match=r"found the type String, the first 'yes'. Write a condition, such as `label: \"y = 'yes'"
    ):
        column(["yes", "no"])
    assert column(["yes", "no"], "y = 'yes'") == [1, 0]


@pytest.mark.parametrize("name", ["visit", "like", "buy it", 'a "b"', "is.click", "größe"])
@pytest.mark.parametrize("values", [["yes", "no"], [5, 1], [-1, 1]])
def test_what_a_message_tells_to_write_is_a_label_that_can_be_read(name: str, values: list[Any]) -> None:
    frame = pl.DataFrame({name: values})
    with pytest.raises(DataError) as caught:
        labels_of(frame, {name: None})
    advised = re.findall(r"`(label: .*?)`", str(caught.value))
    assert advised
    for line in advised:
        labels_of(frame, {name: yaml.safe_load(line)})
