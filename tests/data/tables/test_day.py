"""Rows with a time carry their day as a key, for pages that look at days."""

from __future__ import annotations

import polars as pl

from equipoise.data import TableConfig, from_frame

ROWS = pl.DataFrame(
    {
        "ts": [1_700_000_000 + 40_000 * row for row in range(60)],
        "age": [float(row) for row in range(60)],
        "click": [0, 1, 1] * 20,
    }
)


def config(**more: object) -> TableConfig:
    """Return the description of these rows."""
    return TableConfig(features={"age": "number"}, tasks={"click": "click"}, **more)


def test_the_day_is_counted_from_1970_in_utc() -> None:
    found = from_frame(ROWS, config(time="ts"))
    splits = (found.train, found.validation, found.test)
    days = sorted(day for split in splits for day in split.keys["day"].tolist())
    assert days == sorted(ts // 86_400 for ts in ROWS["ts"])


def test_rows_with_another_split_have_their_day_too_and_may_lack_a_time() -> None:
    rows = ROWS.with_columns(pl.when(pl.int_range(60) > 3).then("ts").alias("ts"))
    found = from_frame(rows, config(time="ts", split={"by": "random"}))
    days = [day for split in (found.train, found.validation, found.test) for day in split.keys["day"].tolist()]
    assert days.count(-1) == 4


def test_without_a_time_there_is_no_day() -> None:
    assert from_frame(ROWS, config()).train.keys == {}
