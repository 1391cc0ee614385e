"""Bad input, as users of the commands meet it: exit code 2, one message with what to do, nothing half-written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.data import from_frame
from tests.data.tables.conftest import FEATURES, TASKS, campaign

LOG = campaign()


def settings_file(**changes: Any) -> str:
    section = {"files": "log.parquet", "features": FEATURES, "tasks": TASKS, "time": "ts", **changes}
    Path("ranker.yaml").write_text(yaml.safe_dump({"data": section, "epochs": 1, "batch_size": 64}))
    return "ranker.yaml"


def refused(*words: str) -> str:
    """Return the message of a command that refuses its input."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "400"})
    assert result.exit_code == 2, result.output
    assert result.output.count("Error:") == 1
    return result.output


def write(frame: pl.DataFrame) -> None:
    frame.write_parquet("log.parquet")


def with_values(column: str, *values: Any, row: int = 7) -> pl.DataFrame:
    """Return the log with some values in place of the first ones of a column, from a row on."""
    found = LOG[column].to_list()
    found[row : row + len(values)] = values
    return LOG.with_columns(pl.Series(column, found, strict=False))


BAD_ROWS: dict[str, tuple[Callable[[], object], dict[str, Any], str]] = {
    "missing column": (
        lambda: write(LOG.rename({"channel": "chanel"})), {},
        "log.parquet: expected the column 'channel' (named by features.channel), found only ts, user_id, chanel, "
        "recency, visit, conversion, spend; did you mean 'chanel'?",
    ),
    "wrong type of a feature": (
        lambda: write(LOG.with_columns(recency=pl.lit("old"))), {},
        "Feature 'recency', column 'recency': expected numbers",
    ),
    "infinite number": (lambda: write(with_values("recency", float("inf"))), {}, "Feature 'recency', column 'recency'"),
    "text as a label": (
        lambda: write(LOG.with_columns(visit=pl.lit("yes"))), {},
        "tasks.visit.label: expected 0, 1, true, false or null; found the type String, the first 'yes'",
    ),
    "-1 labels": (
        lambda: write(with_values("visit", -1, -1)), {"tasks": {"visit": "visit"}},
        "tasks.visit: expected 0, 1, true, false or null; found 2 other values, the first -1 in row 7 (counted from 0) "
        "of log.parquet. If -1 stands for a missing label, write `label: \"NULLIF(visit, -1)\"`",
    ),
    "label that is always 0": (
        lambda: write(LOG.with_columns(visit=pl.lit(0))), {"tasks": {"visit": "visit"}},
        "Some tasks have nothing to learn: leave them out, or correct them.\n  tasks.visit: the label is 0 in all",
    ),
    "regression that is always the same": (
        lambda: write(LOG.with_columns(spend=pl.lit(2.5))), {"tasks": {"spend": {"kind": "regression"}}},
        "tasks.spend: the label is 2.5 in all",
    ),
    "infinite target": (
        lambda: write(with_values("spend", float("inf"))), {"tasks": {"spend": {"kind": "regression"}}},
        "tasks.spend: expected finite numbers or null; found 1 other values, the first inf in row 7",
    ),
    "text as a target": (
        lambda: write(LOG.with_columns(spend=pl.lit("3.5"))), {"tasks": {"spend": {"kind": "regression"}}},
        'found the type String, the first \'3.5\'. Write an expression, such as `label: "CAST(spend AS DOUBLE)"`.',
    ),
    "task without labels": (
        lambda: write(LOG.with_columns(visit=pl.lit(None))), {"tasks": {"visit": "visit"}},
        "tasks.visit: the train rows have no label",
    ),
    "child without its parent": (
        lambda: write(LOG.with_columns(conversion=pl.lit(1))), {},
        "tasks.conversion: expected no positive where 'visit' is 0; found",
    ),
    "negative target of the loss log": (
        lambda: write(with_values("spend", -2.0)), {"tasks": {"spend": {"kind": "regression", "loss": "log"}}},
        "tasks.spend: the loss log needs numbers from 0 up; found 1 negative ones, the first -2.0 in row 7",
    ),
    "all rows at one time": (
        lambda: write(LOG.with_columns(ts=pl.lit(5))), {}, "A split by time needs rows at 3 different times or more"
    ),
    "missing times": (
        lambda: write(with_values("ts", None)), {},
        "The column 'ts' of `time` should hold a time in each row; found 1 missing, the first in row 7",
    ),
    "times of another unit": (
        lambda: write(LOG.with_columns(pl.col("ts") * 10**6)), {},
        "expected times in the years 1 to 9999 (in the unit 's')",
    ),
    "negative weights": (
        lambda: write(LOG.with_columns(w=pl.lit(-1.0))), {"weight": "w"},
        "weight: expected a finite number from 0 up in each row of the column 'w'; found 600 others, the first -1.0",
    ),
    "weights that are all 0": (
        lambda: write(LOG.with_columns(w=pl.lit(0))), {"weight": "w"},
        "weight: the column 'w' is 0 in all rows of the train",
    ),
    "feature that is a label": (
        lambda: write(LOG), {"features": {**FEATURES, "seen": {"kind": "category", "column": "visit"}}},
        "features.seen reads the column 'visit', which is the label of the task 'visit': the model would see the",
    ),
    "feature that is a label in another form": (
        lambda: write(LOG.with_columns(seen=pl.when(pl.col("visit") == 1).then(pl.lit("a")).otherwise(pl.lit("b")))),
        {"features": {**FEATURES, "seen": "category"}},
        "The feature 'seen' gives the label of the task 'visit' exactly, in all",
    ),
    "feature that is a label on another scale": (
        lambda: write(LOG.with_columns(euros=pl.col("spend") * 0.9)),
        {"features": {**FEATURES, "euros": "number"}, "tasks": {"spend": {"kind": "regression"}}},
        "The feature 'euros' gives the label of the task 'spend' exactly",
    ),
    "slices of too many values": (
        lambda: write(campaign(1500).with_columns(at=pl.int_range(1500))),
        {"slices": ["at"]}, "slices: the column 'at' has more than 1000 different values",
    ),
    "no rows": (lambda: write(LOG[:0]), {}, "Expected rows in log.parquet, found none"),
    "too few rows": (lambda: write(LOG[:2]), {"split": {"by": "random"}}, "split has no rows, out of 2"),
    "truncated Parquet": (
        lambda: (write(LOG), Path("log.parquet").write_bytes(Path("log.parquet").read_bytes()[:-9])), {},
        "log.parquet cannot be read as Parquet: it is cut off, still being written, or damaged",
    ),
    "no such file": (lambda: None, {}, "Expected files at log.parquet; there is no such file"),
    "bad row of a CSV": (
        lambda: Path("log.csv").write_text(f"{LOG.write_csv()}1,2,3\n"), {"files": "log.csv"},
        "log.csv, line 602: expected 7 fields as in the header, found 3: '1,2,3'",
    ),
    "duplicate columns": (
        lambda: Path("log.csv").write_text(LOG.write_csv().replace("user_id", "ts", 1)), {"files": "log.csv"},
        "log.csv: expected columns with different names, found twice: ts",
    ),
    "files that disagree": (
        lambda: (LOG.write_parquet("a.parquet"), LOG.with_columns(recency=pl.lit("x")).write_parquet("b.parquet")),
        {"files": "*.parquet"},
        "The column 'recency' should have one type in all files; found Int64 in a.parquet and String in b.parquet",
    ),
    "label that is no SQL": (
        lambda: write(LOG), {"tasks": {"visit": "visit >"}}, "tasks.visit.label: expected a column or an SQL expression"
    ),
    "faults of the description": (
        lambda: write(LOG), {"tasks": {"visit": {"labl": "visit"}}, "epochs": 0},
        "tasks.visit.labl: there is no such key; there are kind, label, after, over, loss, positive_weight, "
        "description; did you mean 'label'?\n  epochs: expected greater than or equal to 1; found 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BAD_ROWS))
def test_bad_input_is_one_message(kind: str) -> None:
    make, changes, message = BAD_ROWS[kind]
    make()
    found = refused("data", "check", settings_file(**changes))
    assert " ".join(message.split()) in " ".join(found.split())


def test_a_training_on_bad_input_writes_nothing(cache: Path) -> None:
    write(with_values("visit", -1))
    before = sorted(Path.cwd().iterdir())
    refused("train", settings_file(), "--out", "run", "--method", "equal")
    assert sorted(Path.cwd().iterdir()) == sorted([*before, Path.cwd() / "ranker.yaml"])
    assert not list(cache.glob("*.parquet"))


NOTES: dict[str, tuple[pl.DataFrame, str]] = {
    "constant feature": (LOG.with_columns(recency=pl.lit(3)), "The feature recency has one value in all train rows"),
    "few positives": (
        LOG.with_columns(conversion=pl.when(pl.int_range(600) % 120 == 0).then("visit").otherwise(0)),
        "positive labels in train: results will differ between seeds",
    ),
    "day without rows": (
        LOG.filter(pl.col("ts") // 86_400 != 1_767_225_600 // 86_400 + 4),
        "1 of 10 days have no rows, the first of them 2026-01-05",
    ),
    "one class in a split": (
        LOG.with_columns(pl.when(pl.int_range(600) < 400).then("visit").otherwise(0)),
        "The task visit has labels of 0 alone in test: its AUC there is undefined.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(NOTES))
def test_doubtful_input_is_noted(kind: str) -> None:
    frame, note = NOTES[kind]
    tasks = (
        {"visit": "visit"} if kind == "one class in a split" else {"visit": "visit", "conversion": {"after": "visit"}}
    )
    dataset = from_frame(frame, {"features": FEATURES, "tasks": tasks, "time": "ts"})
    assert any(note in said for said in dataset.notes), dataset.notes


def test_an_empty_file_among_others_is_noted() -> None:
    write(LOG)
    LOG[:0].write_parquet("empty.parquet")
    result = CliRunner().invoke(app, ["data", "check", settings_file(files="*.parquet")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "Note: empty.parquet has no rows." in result.output


def test_unseen_and_missing_ids_share_the_id_0() -> None:
    frame = LOG.with_columns(pl.when(pl.int_range(600) > 550).then(pl.lit("new")).otherwise("channel").alias("channel"))
    frame = frame.with_columns(pl.when(pl.int_range(600) == 599).then(None).otherwise("channel").alias("channel"))
    dataset = from_frame(frame, {"features": FEATURES, "tasks": {"visit": "visit"}, "time": "ts"})
    assert (dataset.test.take(slice(-49, None)).categorical == 0).all()


FULL_DISK = """
import resource
import equipoise.data.tables
from equipoise.cli.commands import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
main()
"""


def test_a_full_disk_is_named_with_the_folder_that_needs_space(cache: Path) -> None:
    LOG.write_csv("log.csv")
    words = ["data", "check", settings_file(files="log.csv")]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stderr.split())
    assert said.count("Error:") == 1
    assert "log.csv is converted once into the cache folder" in said
    assert "free some space there, or set EQUIPOISE_CACHE to another folder" in said
    assert "Traceback" not in said
    assert not [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "hashes"]


def test_a_training_is_not_resumed_on_files_that_have_changed() -> None:
    write(LOG)
    words = ["train", settings_file(), "--method", "equal", "--out", "run"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    write(with_values("recency", 12, 12, 12, row=3))
    found = refused(*words, "--resume")
    assert "data" in found
