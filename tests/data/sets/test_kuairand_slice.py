"""The slice of KuaiRand: six tasks by time, without what is known only afterwards; its bias is stated."""

import gzip
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from equipoise.data import DataError, load

ROWS = 300
REAL = Path(os.environ.get("EQUIPOISE_DATA", "/nonexistent")) / "kuairand" / "log_explicit_kcore15.csv.gz"
TASKS = ("is_click", "long_view", "is_profile_enter", "is_comment", "is_forward", "is_follow")


def write(folder: Path, *, without: str = "") -> None:
    random = np.random.default_rng(0)
    log = {name: random.integers(0, 2, ROWS) for name in (*TASKS, "label")}
    log |= {"user_id": np.where(np.arange(ROWS) < 60, 9, np.arange(ROWS) % 5), "video_id": np.arange(ROWS) % 30}
    log |= {"time_ms": 1_649_581_149_287 + 60_000 * np.arange(ROWS)[::-1]}  # the newest row first
    log |= dict.fromkeys(("play_time_ms", "duration_ms", "comment_stay_time"), np.full(ROWS, 1000))
    text = pl.DataFrame(log).drop(without, strict=False).write_csv(separator="\t")
    (folder / REAL.name).write_bytes(gzip.compress(text.encode()))


def test_rows_are_split_by_time_and_hold_only_what_was_known_before(tmp_path: Path) -> None:
    write(tmp_path)
    found = load("kuairand-slice", folder=tmp_path)
    assert found.schema.task_names == TASKS
    assert [len(part) for part in (found.train, found.validation, found.test)] == [210, 30, 60]
    assert {feature.name for feature in found.schema.categorical} == {"user_id", "video_id", "hour", "weekday"}
    assert found.schema.numeric_columns == ("duration_ms",)
    users = [set(part.keys["user_id"].tolist()) for part in (found.train, found.validation, found.test)]
    assert len(users[2]) == 1  # user 9, who has the newest fifth of the rows
    assert not users[2] & (users[0] | users[1])
    assert found.group == "user_id"


def test_every_reader_learns_of_the_selection_and_of_another_file(tmp_path: Path) -> None:
    write(tmp_path)
    notes = " ".join(load("kuairand-slice", folder=tmp_path).notes)
    assert "only rows with a like or a hate" in notes
    assert "300 rows; the published set has 41,828" in notes


def test_a_file_without_a_column_and_a_folder_without_the_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kuairand-slice.*found neither"):
        load("kuairand-slice", folder=tmp_path)
    write(tmp_path, without="is_forward")
    with pytest.raises(DataError, match="expected the column 'is_forward', found is_click"):
        load("kuairand-slice", folder=tmp_path)


@pytest.mark.skipif(not REAL.is_file(), reason="needs the slice in EQUIPOISE_DATA")
def test_the_slice_itself_has_its_rates() -> None:
    found = load("kuairand-slice")
    splits = (found.train, found.validation, found.test)
    assert sum(map(len, splits)) == 41_828
    positives = sum(part.labels.sum(0) for part in splits)
    assert [int(count) for count in positives] == [positive_rows(task) for task in TASKS]


def positive_rows(task: str) -> int:
    lines = gzip.decompress(REAL.read_bytes()).decode().splitlines()
    place = lines[0].split("\t").index(task)
    return sum(line.split("\t")[place] == "1" for line in lines[1:])
