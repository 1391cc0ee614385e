"""Preparation is kept by content of files and settings, and a change of a file is never overlooked."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from equipoise.data import Dataset, from_files
from equipoise.data.tables import build
from equipoise.data.tables.content import code_hash, content_hash
from equipoise.errors import DataError
from tests.data.tables.conftest import FEATURES, TASKS, campaign
from tests.data.tables.test_build import assert_same

LOG = campaign()


def prepared(**changes: Any) -> Dataset:
    section = {"files": "log.csv", "features": FEATURES, "tasks": TASKS, "time": "ts", "user": "user_id"}
    return from_files({**section, "slices": ["channel"], "weight": "recency", **changes})


def write(frame: pl.DataFrame = LOG, name: str = "log.csv") -> None:
    frame.write_csv(name)
    os.utime(name, ns=(10**18, 10**18 + hash(name) % 1000))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the preparations."""
    counted, prepare = list[int](), build.prepare

    def counting(*arguments: Any) -> Any:
        counted.append(1)
        return prepare(*arguments)

    monkeypatch.setattr(build, "prepare", counting)
    return counted


def test_what_comes_from_the_cache_is_the_same(builds: list[int]) -> None:
    write()
    first, second = prepared(), prepared()
    assert len(builds) == 1
    assert_same(first, second)
    assert first.fingerprint() == second.fingerprint()
    for name in ("name", "notes", "epochs", "batch_size", "source", "group", "slices", "encoding", "schema"):
        assert getattr(first, name) == getattr(second, name), name
    assert {name: [*words] for name, words in second.values.items()} == first.values


def test_names_of_features_tasks_and_keys_do_not_meet(builds: list[int]) -> None:
    LOG.rename({"recency": "weight", "visit": "importance"}).write_parquet("log.parquet")
    changes: dict[str, Any] = {
        "files": "log.parquet", "weight": "", "slices": ["weight"], "split": {"by": "random"},
        "features": {"weight": "number", "channel": "category"}, "tasks": {"importance": None},
    }  # fmt: skip
    first, second = prepared(**changes), prepared(**changes)
    assert len(builds) == 1
    assert_same(first, second)


def test_another_content_or_setting_is_prepared_anew(builds: list[int]) -> None:
    write()
    first = prepared()
    os.utime("log.csv")  # another time of the same content
    assert prepared().fingerprint() == first.fingerprint()
    assert len(builds) == 1
    prepared(epochs=2)
    prepared(features={**FEATURES, "recency": "category"})
    assert len(builds) == 3
    LOG.with_columns(pl.col("recency").shuffle(seed=0)).write_csv("log.csv")  # of the same size
    assert prepared().fingerprint() != first.fingerprint()
    assert len(builds) == 4


def test_the_same_files_elsewhere_are_not_prepared_again(builds: list[int]) -> None:
    write()
    first = prepared()
    Path("log.csv").rename("moved.csv")
    assert_same(prepared(files="moved.csv", name="log"), first)
    assert len(builds) == 1


def test_days_of_folders_belong_to_the_content(builds: list[int]) -> None:
    for day in ("2026-01-01", "2026-01-02"):
        Path(f"logs/day={day}").mkdir(parents=True)
        LOG.write_parquet(f"logs/day={day}/x.parquet")
    changes = {"files": "logs", "features": {**FEATURES, "day": "category"}, "split": {"by": "random"}}
    first = prepared(**changes)
    Path("logs/day=2026-01-02").rename("logs/day=2026-01-03")
    assert prepared(**changes).encoding != first.encoding
    assert len(builds) == 2


def test_a_file_that_changes_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    prepare = build.prepare

    def changing(*arguments: Any) -> Any:
        write(LOG[:500])
        return prepare(*arguments)

    monkeypatch.setattr(build, "prepare", changing)
    with pytest.raises(DataError, match=r"log.csv was changed while it was read. Run the command again"):
        prepared()
    monkeypatch.undo()


def test_a_cache_that_cannot_be_written_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    LOG.write_parquet("log.parquet")
    Path("file").touch()
    monkeypatch.setenv("EQUIPOISE_CACHE", "file/folder")
    with caplog.at_level(logging.WARNING):
        prepared(files="log.parquet")
    assert "cannot be kept in file/folder" in caplog.text


def test_an_unchanged_file_is_not_hashed_again() -> None:
    write()
    first = content_hash(Path("log.csv"))
    known = list(Path(os.environ["EQUIPOISE_CACHE"]).glob("hashes/*.json"))
    assert len(known) == 1
    known[0].write_text(known[0].read_text().replace(first, "0" * 32))
    assert content_hash(Path("log.csv")) == "0" * 32
    known[0].write_text("{damaged")
    assert content_hash(Path("log.csv")) == first


def test_a_file_of_this_moment_is_hashed_each_time() -> None:
    LOG.write_csv("log.csv")
    content_hash(Path("log.csv"))
    assert not list(Path(os.environ["EQUIPOISE_CACHE"]).glob("hashes/*.json"))


KILLED = """
import os, signal, sys
from equipoise.data import from_files
from equipoise.data.tables import {room}

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

{room}.{name} = killed
from_files("ranker.yaml")
"""


@pytest.mark.parametrize(("room", "name"), [("text_files", "_typed_columns"), ("build", "constant_features")])
def test_a_killed_preparation_leaves_nothing_that_the_next_one_takes(cache: Path, room: str, name: str) -> None:
    write()
    Path("ranker.yaml").write_text(
        "data: {files: log.csv, time: ts, features: {channel: category, recency: number}, tasks: {visit: visit}}"
    )
    done = subprocess.run([sys.executable, "-c", KILLED.format(room=room, name=name)], check=False)
    assert done.returncode == -signal.SIGKILL
    whole = from_files("ranker.yaml")
    assert sum(map(len, (whole.train, whole.validation, whole.test))) == LOG.height
    assert len([path for path in (cache / "text-files").iterdir() if not path.name.startswith(".")]) == 1


def test_another_code_has_another_hash_so_that_it_builds_anew(tmp_path: Path) -> None:
    hashes = set()
    for place, text in enumerate(("a = 1\n", "a = 2\n", "a = 1\n")):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / "rules.py").write_text(text)
        hashes.add(code_hash(folder))
    assert len(hashes) == 2
