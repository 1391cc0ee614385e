"""Roles of columns are guessed as a person who reads the table would."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from equipoise.data.encoding.places import Place
from equipoise.data.encoding.times import times_of
from equipoise.data.proposal.roles import Proposal, propose

ROWS = 2000


def logs(**columns: Any) -> pl.DataFrame:
    """Return a table of clicks and purchases, with more columns."""
    random = np.random.default_rng(0)
    click = random.random(ROWS) < 0.4
    plain = {
        "user_id": random.integers(0, 90, ROWS),
        "item_id": random.integers(0, 700, ROWS),
        "price": np.exp(random.normal(0, 2, ROWS)),
        "click": click.astype(int),
        "purchase": (click & (random.random(ROWS) < 0.3)).astype(int),
    }
    return pl.DataFrame(plain | columns)


def proposed(**columns: Any) -> Proposal:
    frame = logs(**columns)
    return propose(frame, frame.height)


def test_labels_are_told_from_features_of_two_values() -> None:
    found = proposed(newbie=np.arange(ROWS) % 2)
    assert list(found.tasks) == ["click", "purchase"]
    assert found.features["newbie"].value == "category"


def test_names_are_read_word_by_word_however_they_are_written() -> None:
    names = {"user_id": "userId", "item_id": "item.ID", "click": "isClick", "purchase": "purchase made"}
    frame = logs(eventTime=1_700_000_000 + np.arange(ROWS)).rename(names)
    found = propose(frame, frame.height)
    assert list(found.tasks) == ["isClick", "purchase made"]
    assert (found.user.value, found.time.value) == ("userId", {"column": "eventTime", "unit": "s"})
    assert found.features["item.ID"].value == "category"


def test_a_column_that_names_the_splits_is_no_feature() -> None:
    found = proposed(part=np.array(["train", "val", "test"])[np.arange(ROWS) % 3])
    values = {"train": "train", "validation": "val", "test": "test"}
    assert found.split.value["column"] == "part"
    assert found.split.value["values"] == values
    assert "part" not in found.features
    other = proposed(part=np.array(["train", "plane", "test"])[np.arange(ROWS) % 3])
    assert other.features["part"].value == "category"


def test_a_task_is_nested_in_the_smallest_that_holds_all_its_positives() -> None:
    frame = logs()
    frame = frame.with_columns(view=pl.lit(1).repeat_by(1).list.first() * (pl.int_range(ROWS) % 10 != 0))
    frame = frame.with_columns(view=pl.max_horizontal(pl.col("view").cast(pl.Int64), "click"))
    found = propose(frame, frame.height)
    assert found.tasks["purchase"].value == {"label": "purchase", "after": "click"}
    assert found.tasks["click"].value == {"label": "click", "after": "view"}


def test_one_counterexample_is_enough_against_nesting_and_is_said() -> None:
    frame = logs()
    row = int((frame["click"] == 0).arg_true()[0])
    frame = frame.with_columns(pl.when(pl.int_range(ROWS) == row).then(1).otherwise("purchase").alias("purchase"))
    found = propose(frame, frame.height)
    assert found.tasks["purchase"].value == "purchase"
    assert "almost nested" in found.tasks["purchase"].remark


def test_a_number_that_needs_a_purchase_is_an_outcome_not_a_feature() -> None:
    frame = logs()
    frame = frame.with_columns(spend_sum=pl.col("purchase") * 12.5)
    found = propose(frame, frame.height)
    assert found.tasks["spend_sum"].value["after"] == "purchase"
    assert "spend_sum" not in found.features


def test_a_watch_time_is_left_out_with_the_task_that_it_could_be() -> None:
    found = proposed(watch_time=np.random.default_rng(1).integers(0, 300, ROWS))
    assert "watch_time" not in found.features
    assert "kind: regression" in found.left_out["watch_time"]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("ts", 1_700_000_000 + np.arange(ROWS), {"column": "ts", "unit": "s"}),
        ("time_ms", 1_700_000_000_000 + np.arange(ROWS), {"column": "time_ms", "unit": "ms"}),
        ("date", 20260101 + np.arange(ROWS) % 28, {"column": "date", "format": "%Y%m%d"}),
    ],
)
def test_times_are_found_in_every_form_of_numbers(name: str, values: Any, expected: dict[str, str]) -> None:
    found = proposed(**{name: values})
    assert found.time is not None
    assert found.time.value == expected
    assert found.split.value["by"] == "time"
    hours = [feature for feature in found.features if feature.startswith("hour")]
    assert bool(hours) == ("unit" in expected)  # days have no hour


MOMENTS = [datetime(2026, 1, 1 + row % 28, row % 24, row % 60, row % 50, tzinfo=UTC) for row in range(ROWS)]


@pytest.mark.parametrize("clock", ["", " %H:%M", " %H:%M:%S"])
@pytest.mark.parametrize("day", ["%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y"])
def test_times_are_found_in_every_form_of_text_and_can_be_read(day: str, clock: str) -> None:
    texts = [moment.strftime(day + clock) for moment in MOMENTS]
    found = proposed(seen=texts)
    assert found.time is not None
    form = None if day == "%Y-%m-%d" else day + clock
    assert found.time.value == ({"column": "seen", "format": form} if form else "seen")
    assert [name for name in found.features if name.endswith("_of_seen")] == (
        ["hour_of_seen", "weekday_of_seen"] if clock else ["weekday_of_seen"]
    )
    cut = {"": 86_400, " %H:%M": 60, " %H:%M:%S": 1}[clock]
    read = times_of(pl.Series(texts), "s", form, Place("time", "seen"))
    assert read.to_list() == [int(moment.timestamp()) // cut * cut for moment in MOMENTS]


@pytest.mark.parametrize("ending", ["T%H:%M:%SZ", "T%H:%M:%S.250+00:00"])
def test_times_of_iso_8601_need_no_format(ending: str) -> None:
    found = proposed(seen=[moment.strftime(f"%Y-%m-%d{ending}") for moment in MOMENTS])
    assert found.time is not None
    assert found.time.value == "seen"


def test_it_is_said_whether_the_day_or_the_month_is_read_first() -> None:
    for form, said in (("%m/%d/%Y %I:%M %p", "the month is read"), ("%d/%m/%Y", "the day is read")):
        found = proposed(seen=[moment.strftime(form) for moment in MOMENTS])
        assert found.time is not None
        assert found.time.value["format"] == form
        assert said in found.time.remark


@pytest.mark.parametrize(("yes", "no"), [("yes", "no"), ("Y", "N"), ("t", "f")])
def test_labels_of_yes_and_no_are_tasks(yes: str, no: str) -> None:
    answer = pl.when(pl.col("click") == 1).then(pl.lit(yes)).otherwise(pl.lit(no))
    frame = logs().with_columns(answer.alias("click"), pl.Series("is member", [yes, no] * (ROWS // 2)))
    found = propose(frame, frame.height)
    assert found.tasks["click"].value == f"click = '{yes}'"
    assert found.tasks["purchase"].value == {"label": "purchase", "after": "click"}
    assert found.features["is member"].value == "category"


def test_a_doubtful_label_of_yes_and_no_comes_after_one_of_0_and_1() -> None:
    frame = logs().drop("click", "purchase")
    frame = frame.with_columns(flag=pl.int_range(ROWS) % 2, member=pl.Series(["yes", "no"] * (ROWS // 2)))
    assert list(propose(frame, ROWS).tasks) == ["flag"]
    alone = propose(frame.drop("flag"), ROWS).tasks["member"]
    assert (alone.value, alone.remark) == ("member = 'yes'", "the last column of yes and no: is it a label?")


def test_the_finest_of_several_times_is_chosen_and_the_others_are_no_features() -> None:
    found = proposed(ts=1_700_000_000 + np.arange(ROWS), date=20260101 + np.arange(ROWS) % 28)
    assert found.time is not None
    assert found.time.value["column"] == "ts"
    assert "date" in found.left_out
    assert "date" not in found.features


def test_a_history_shares_the_table_of_its_items() -> None:
    random = np.random.default_rng(2)
    history = ["|".join(map(str, random.integers(0, 700, random.integers(1, 9)))) for _ in range(ROWS)]
    value = proposed(item_history=history).features["item_history"].value
    assert value["separator"] == "|"
    assert (value["table"], value["target"], value["pooling"]) == ("item_id", "item_id", "attention")


def test_words_with_a_space_are_no_list() -> None:
    found = proposed(segment=np.array(["Mens E-Mail", "Womens E-Mail", "No E-Mail"])[np.arange(ROWS) % 3])
    assert found.features["segment"].value == "category"


def test_numbers_with_a_decimal_comma_are_left_out_with_what_to_do() -> None:
    prices = ["n/a" if row % 50 == 0 else str(row) if row % 9 == 0 else f"{row},25" for row in range(ROWS)]
    found = proposed(price=prices, code=[f"{row % 40:03}" for row in range(ROWS)])
    assert "price" not in found.features
    assert "write a point" in found.left_out["price"]
    assert found.features["code"].value == "category"


def test_lists_of_fractions_of_one_length_are_vectors() -> None:
    found = proposed(image=[[0.5, float(row), 0.25] for row in range(ROWS)])
    assert found.features["image"].value == {"kind": "vector", "width": 3}


def test_row_numbers_and_constants_are_left_out() -> None:
    found = proposed(request_id=[f"r{row}" for row in range(ROWS)], country=["DE"] * ROWS, empty=[None] * ROWS)
    assert {"request_id", "country", "empty"} <= found.left_out.keys()


def test_users_are_kept_apart_where_there_is_no_time() -> None:
    found = proposed()
    assert found.user is not None
    assert found.user.value == "user_id"
    assert found.split.value["by"] == "user"


def test_a_doubtful_label_is_said_to_be_doubtful() -> None:
    frame = logs().drop("click", "purchase").with_columns(flag=pl.int_range(ROWS) % 2)
    found = propose(frame, frame.height)
    assert "is it a label?" in found.tasks["flag"].remark


def test_few_positives_are_said() -> None:
    found = proposed(like=(np.arange(ROWS) < 7).astype(int))
    assert "only 7 positives" in found.tasks["like"].remark
