"""Own tables in a prepared folder are the rows that they give in memory, and go on after a kill."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from typer.testing import CliRunner

from equipoise.cli.commands import app
from equipoise.data import DataError, Dataset, Split, from_files, from_prepared, prepare
from equipoise.data.stream import preparing, read_manifest

FILES = 20


def raw_rows(rows: int, first: int) -> pl.DataFrame:
    rng = np.random.default_rng(first)
    age = rng.integers(18, 80, rows)
    return pl.DataFrame({
        "ts": first + np.arange(rows),
        "user": rng.integers(0, 30, rows),
        "zip": rng.choice(["rural", "urban", "suburban"], rows),
        "age": pl.Series(age, dtype=pl.Int64).set(pl.Series(rng.random(rows) < 0.1), None),
        "history": [" ".join(map(str, rng.integers(0, 9, n))) for n in rng.integers(0, 5, rows)],
        "w": rng.random(rows),
        "click": (age > 50).astype(int),
        "spend": np.where(age > 50, rng.random(rows) * 9, 0.0),
    })  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files, each of which is a block of rows."""
    folder = tmp_path_factory.mktemp("log")
    for i in range(FILES):
        raw_rows(40, 40 * i).write_parquet(folder / f"{i:02d}.parquet")
    return folder


def description(log: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "shop", "files": [str(log)], "user": "user", "weight": "w", "slices": ["zip"], "user_groups": ["zip"],
        "features": {
            "zip": "category",
            "age": "number",
            "history": {"kind": "categories", "separator": " ", "length": 3, "min_count": 1},
        },
        "tasks": {
            "click": "click", "spend": {"kind": "regression", "label": "spend", "after": "click"}
        },
        "split": {"by": "random", "validation": 0.2, "test": 0.2}, "epochs": 2, "batch_size": 32,
    } | changes  # fmt: skip


def assert_same(one: Dataset, other: Dataset) -> None:
    for field in (
        "name",
        "schema",
        "notes",
        "epochs",
        "batch_size",
        "source",
        "group",
        "values",
        "slices",
        "user_groups",
        "encoding",
    ):
        assert getattr(one, field) == getattr(other, field), field
    for name in ("train", "validation", "test"):
        parts: list[Split] = [getattr(dataset, name).take(slice(None)) for dataset in (one, other)]
        for column in ("categorical", "numeric", "labels", "weight", "importance", "keys"):
            expected, found = (getattr(part, column) for part in parts)
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("split", [{"by": "random"}, {"by": "time"}, {"by": "user"}])
def test_prepared_rows_are_those_in_memory(log: Path, tmp_path: Path, split: dict[str, str]) -> None:
    config = description(log, time="ts", split=split)
    prepare(config, tmp_path / "out")
    assert_same(from_files(config), from_prepared(tmp_path / "out"))


def test_a_settings_file_is_prepared_trained_on_and_used_to_predict(log: Path, tmp_path: Path) -> None:
    settings, out, run = tmp_path / "shop.yaml", tmp_path / "prepared", tmp_path / "run"
    config = description(log, tasks={"click": "click"})
    settings.write_text(yaml.safe_dump({"data": config, "epochs": 1, "batch_size": 64, "lr": 0.01}))
    for words in (
        ["data", "prepare", str(settings), "--out", str(out)],
        ["train", str(settings), "--data", str(out), "--out", str(run)],
        ["predict", str(run), str(log / "00.parquet"), "--out", str(tmp_path / "predictions.parquet")],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        if words[1] == "prepare":
            rows = read_manifest(out).rows()
            assert f"shop: {rows['train']} train, {rows['validation']} validation, {rows['test']} test" in result.output
    assert pl.read_parquet(tmp_path / "predictions.parquet").height == 40


KILLED = """
import os, signal, sys
from equipoise.data import prepare
from equipoise.data.stream import writing

write = writing._write_part

def killed(folder, split, place, layout, rows):
    if place == 2 and split == "validation":
        os.kill(os.getpid(), signal.SIGKILL)
    return write(folder, split, place, layout, rows)

writing._write_part = killed
prepare(sys.argv[1], sys.argv[2])
"""


def test_a_killed_preparation_is_completed_with_the_same_rows(log: Path, tmp_path: Path) -> None:
    settings, out = tmp_path / "shop.yaml", tmp_path / "out"
    settings.write_text(yaml.safe_dump({"data": description(log)}))
    killed = subprocess.run([sys.executable, "-c", KILLED, settings, out], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match="an unfinished preparation"):
        from_prepared(out)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("part-0000[01].parquet")}
    assert len(kept) == 6
    prepare(settings, out)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert_same(from_files(settings), from_prepared(out))


def test_another_setting_or_a_changed_file_is_refused(tmp_path: Path) -> None:
    raw_rows(400, 0).write_parquet(tmp_path / "rows.parquet")
    config = description(tmp_path / "rows.parquet")
    prepare(config, tmp_path / "out")
    with pytest.raises(DataError, match=r"other files or settings:\n  settings\.split\.seed: 0 there, 1 now"):
        prepare(config | {"split": {"by": "random", "validation": 0.2, "test": 0.2, "seed": 1}}, tmp_path / "out")
    raw_rows(400, 7).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"settings:\n  files\..*rows\.parquet: [0-9a-f]+ there, [0-9a-f]+ now"):
        prepare(config, tmp_path / "out")


def test_a_file_that_changes_during_the_preparation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_rows(400, 0).write_parquet(tmp_path / "rows.parquet")
    blocks = preparing.Preparation.blocks

    def changed(found: preparing.Preparation, first: int = 0) -> object:
        yield from blocks(found, first)
        raw_rows(400, 7).write_parquet(tmp_path / "rows.parquet")

    monkeypatch.setattr(preparing.Preparation, "blocks", changed)
    with pytest.raises(DataError, match=r"rows\.parquet was changed while it was being prepared"):
        prepare(description(tmp_path / "rows.parquet"), tmp_path / "out")
    with pytest.raises(DataError, match="an unfinished preparation"):
        from_prepared(tmp_path / "out")


def test_the_command_says_what_is_wrong(log: Path, tmp_path: Path) -> None:
    settings = tmp_path / "shop.yaml"
    settings.write_text(yaml.safe_dump({"data": description(log, tasks={"click": "clicked"})}))
    result = CliRunner().invoke(app, ["data", "prepare", str(settings), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "clicked" in result.output
    result = CliRunner().invoke(app, ["train", "--data", str(log)])
    assert result.exit_code == 2
    assert "Expected a prepared folder with a manifest.json, found none" in result.output
