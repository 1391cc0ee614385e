import json
from pathlib import Path

import pytest

from equipoise.compare.records import append_run, read_runs, write_json
from equipoise.training import Run, SettingError


def test_runs_are_lines_that_come_back(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    assert read_runs(file) == []
    for seed in range(2):
        append_run(file, Run("equal", seed, 1e-3), phase="run")
    assert [run.seed for run in read_runs(file)] == [0, 1]
    assert json.loads(file.read_text().splitlines()[0])["phase"] == "run"


def test_a_line_that_was_cut_off_is_taken_out_and_the_next_run_stands_alone(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    append_run(file, Run("equal", 0, 1e-3))
    with file.open("a") as lines:
        lines.write('{"method": "pub", "se')
    assert [run.method for run in read_runs(file)] == ["equal"]
    append_run(file, Run("clippy", 0, 1e-3))
    assert [run.method for run in read_runs(file)] == ["equal", "clippy"]


def test_a_line_that_is_no_run_is_named(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    append_run(file, Run("equal", 0, 1e-3))
    for wrong in ("{}", "seed 3", "[1]"):
        file.write_text(f"{Run('equal', 0, 1e-3).to_json()}\n{wrong}\n")
        with pytest.raises(SettingError, match="line 2: expected a run"):
            read_runs(file)


def test_json_that_cannot_be_written_leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_json(file, {"seeds": 3})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"seeds": float("nan")})
    assert json.loads(file.read_text()) == {"seeds": 3}
    assert list(tmp_path.iterdir()) == [file]
