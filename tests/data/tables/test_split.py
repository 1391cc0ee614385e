"""The split of rows: no leak that its note denies, the same for the same seed, and never an empty part."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.data.tables.config import TableConfig
from equipoise.data.tables.files import open_files
from equipoise.data.tables.frames import open_frame
from equipoise.data.tables.keys import KeyPlace, hashed_values
from equipoise.data.tables.split import Assignment, assign
from equipoise.errors import DataError
from tests.data.tables.conftest import campaign


def split(frame: pl.DataFrame, **keys: Any) -> Assignment:
    config = TableConfig(features={"channel": "category"}, tasks={"visit": "visit"}, **keys)
    return assign(open_frame(frame).table(), config)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    times=st.lists(st.integers(0, 50), min_size=3, max_size=200).filter(lambda times: len(set(times)) > 2),
    validation=st.floats(0.01, 0.45),
    test=st.floats(0.01, 0.45),
)
def test_by_time_equal_times_stay_together_and_each_split_is_later(
    times: list[int], validation: float, test: float
) -> None:
    found = split(pl.DataFrame({"ts": times}), time="ts", split={"validation": validation, "test": test})
    stamps = np.asarray(times)
    parts = [stamps[found.part == i] for i in range(3)]
    assert parts[0].max() < parts[1].min() <= parts[1].max() < parts[2].min()


def test_by_time_seconds_that_are_read_as_milliseconds_are_noted() -> None:
    seconds = pl.DataFrame({"ts": np.arange(100) * 3600 + 1_700_000_000})
    assert not any("state the unit" in note for note in split(seconds, time="ts").notes)
    wrong = split(seconds, time={"column": "ts", "unit": "ms"}).notes
    assert any("1970" in note and "state the unit of `time`" in note for note in wrong)


def test_by_time_the_shares_are_met_where_times_differ() -> None:
    order = np.random.default_rng(0).permutation(1000)
    found = split(pl.DataFrame({"ts": order}), time="ts", split={"validation": 0.1, "test": 0.3})
    assert found.counts == (600, 100, 300)
    assert (found.part == np.digitize(order, [600, 700])).all()


@pytest.mark.parametrize(
    ("values", "time"),
    [
        ([1_767_225_600_000 + i * 86_400_000 for i in range(10)], {"column": "ts", "unit": "ms"}),
        ([f"2026-01-{day:02}" for day in range(1, 11)], "ts"),
        ([f"{day:02}.01.2026" for day in range(1, 11)], {"column": "ts", "format": "%d.%m.%Y"}),
        (pl.Series(range(20_454, 20_464)).cast(pl.Date), "ts"),
        (pl.Series(range(20_454, 20_464)).cast(pl.Date).cast(pl.Datetime("ns", "UTC")), "ts"),
    ],
)
def test_times_of_any_form_give_the_same_split(values: Any, time: Any) -> None:
    found = split(pl.DataFrame({"ts": values}), time=time)
    assert found.part.tolist() == [0] * 7 + [1] + [2] * 2
    assert "train before 2026-01-08, test from 2026-01-09 on (UTC)" in found.notes[0]
    assert "nothing is learned from the future" in found.notes[0]


def test_days_without_rows_are_noted() -> None:
    days = [1, 2, 5, 6, 7]
    found = split(pl.DataFrame({"ts": [f"2026-01-{day:02}" for day in days]}), time="ts")
    assert found.notes[1] == "2 of 7 days have no rows, the first of them 2026-01-03."


def test_rows_at_too_few_times_are_refused() -> None:
    with pytest.raises(DataError, match="at 3 different times or more; the column 'ts' holds 1, from 1970-01-01 00:00"):
        split(pl.DataFrame({"ts": [7] * 20}), time="ts")


def test_missing_times_are_refused_with_count_and_file() -> None:
    for name, times in {"a": [1, 2], "b": [3, None, None]}.items():
        pl.DataFrame({"ts": times}, schema={"ts": pl.Int64}).write_parquet(f"{name}.parquet")
    config = TableConfig(features={"a": "category"}, tasks={"b": "b"}, time="ts")
    with pytest.raises(DataError, match=r"found 2 missing, the first in row 1 \(counted from 0\) of b.parquet"):
        assign(open_files(["a.parquet", "b.parquet"]).table(), config)


def test_a_time_of_another_form_is_refused_with_its_key_and_file() -> None:
    with pytest.raises(DataError, match=r"The column 'ts' of `time` in The table: expected times in the format .*'ISO"):
        split(pl.DataFrame({"ts": ["01.02.2026"] * 5}), time="ts")


def test_by_column_its_values_name_the_split() -> None:
    frame = pl.DataFrame({"fold": [0, 1, 2, 3, 0]})
    values = {"train": [0, 1], "validation": 2, "test": 3}
    found = split(frame, split={"by": "column", "column": "fold", "values": values})
    assert found.part.tolist() == [0, 0, 1, 2, 0]
    named = split(pl.DataFrame({"s": ["test", "train", "validation"]}), split={"by": "column", "column": "s"})
    assert named.part.tolist() == [2, 0, 1]
    assert "users, items and times may occur in several splits" in named.notes[0]


def test_by_column_other_values_are_refused() -> None:
    with pytest.raises(DataError, match=r"should hold train, validation, test; found 'dev' in row 1"):
        split(pl.DataFrame({"s": ["train", "dev", "test"]}), split={"by": "column", "column": "s"})


def test_at_random_the_shares_are_met_and_the_seed_decides() -> None:
    frame = pl.DataFrame({"a": range(20_000)})
    one, same, other = (split(frame, split={"by": "random", "seed": seed}) for seed in (1, 1, 2))
    assert (one.part == same.part).all()
    assert 0.4 < (one.part == other.part).mean() < 0.6  # 0.7² + 0.1² + 0.2² = 0.54 of independent ones agree
    np.testing.assert_allclose(np.asarray(one.counts) / 20_000, [0.7, 0.1, 0.2], atol=0.01)
    assert "users, items and times occur in several splits" in one.notes[0]


def test_at_random_a_row_keeps_its_split_when_rows_are_added() -> None:
    frame = pl.DataFrame({"a": range(1000)})
    assert (split(frame).part[:500] == split(frame[:500]).part).all()


@pytest.mark.parametrize("convert", [lambda users: users, lambda users: users.cast(pl.String)])
def test_by_user_each_is_in_one_split(convert: Any) -> None:
    frame = campaign(3000).with_columns(convert(pl.col("user_id")))
    found = split(frame, user="user_id", split={"by": "user", "seed": 3})
    splits = frame.with_columns(pl.Series("part", found.part)).group_by("user_id").agg(pl.col("part").n_unique())
    assert (splits["part"] == 1).all()
    assert min(found.counts) > 100
    assert "a user is in one split alone" in found.notes[0]


def test_by_user_floats_are_whole_or_not_in_other_blocks() -> None:
    place = KeyPlace("user", "u")
    whole, mixed = (hashed_values(pl.Series([3.0, other]), place) for other in (4.0, 0.5))
    assert whole[0] == mixed[0]
    assert len({*whole, *mixed}) == 3


def test_by_user_missing_ones_are_noted() -> None:
    frame = pl.DataFrame({"u": [None, *range(500), None]})
    found = split(frame, user="u", split={"by": "user"})
    assert found.notes[1] == "2 rows without a user are in one split, as if of one user."


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"The (validation|test) split has no rows, out of 3: use more rows, or change"):
        split(pl.DataFrame({"a": [1, 2, 3]}), split={"by": "random", "validation": 0.001, "test": 0.001})
    with pytest.raises(DataError, match="The test split has no rows, out of 2: name a value of the column 's'"):
        split(pl.DataFrame({"s": ["train", "validation"]}), split={"by": "column", "column": "s"})


def test_no_rows_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="Expected rows in The table, found none"):
        split(pl.DataFrame({"a": []}))
