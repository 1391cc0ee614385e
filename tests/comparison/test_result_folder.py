"""A comparison's folder is written whole and read as far as it is complete; errors name the damaged file."""

import json

import pytest

from equipoise.comparison.result_folder import FolderError, ResultFolder, write_json
from equipoise.training import Run, SettingError


def append(folder, name, text):
    with (folder / name).open("a") as file:
        file.write(text)


def test_a_finished_comparison_is_read_whole(comparison):
    results = ResultFolder(comparison()).results()
    assert len(results.runs) == results.planned == 40
    assert [run.seed for run in results.of("pub")] == [0, 1, 2, 3, 4]
    assert len(results.tuning) == 24
    assert results.throughput["equal"].ratio == 1


def test_a_line_that_is_just_being_written_is_left_out_and_left_alone(comparison):
    folder = comparison(seeds=1)
    append(folder, "runs.jsonl", '{"method": "equal", "se')
    assert len(ResultFolder(folder).results().runs) == 8
    assert (folder / "runs.jsonl").read_text().endswith('"se')


def test_runs_that_the_plan_does_not_name_are_left_out(comparison):
    folder = comparison(methods=("equal", "pub"), seeds=2)
    of_plan = json.loads((folder / "runs.jsonl").read_text().splitlines()[0])
    for change in ({"seed": 7}, {"method": "clippy"}, {"lr": 0.5}):
        append(folder, "runs.jsonl", json.dumps(of_plan | change) + "\n")
    results = ResultFolder(folder).results()
    assert len(results.runs) == 4
    assert {run.lr for run in results.runs} == {3e-3, 1e-3}


def test_a_folder_without_a_plan_says_what_to_do(tmp_path):
    with pytest.raises(FolderError, match=r"plan\.json.*run 'equipoise compare' first"):
        ResultFolder(tmp_path).results()


def test_a_plan_with_a_missing_field_is_named(comparison):
    folder = comparison(seeds=1)
    plan = json.loads((folder / "plan.json").read_text())
    del plan["tasks"]
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(FolderError, match="tasks: Field required"):
        ResultFolder(folder).results()


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"method": "equal"}'])
def test_a_damaged_run_is_named_by_file_and_line(comparison, line):
    folder = comparison(methods=("equal",), seeds=1)
    append(folder, "runs.jsonl", line + "\n")
    with pytest.raises(FolderError, match=r"runs\.jsonl, line 2"):
        ResultFolder(folder).results()


def test_damaged_throughput_is_named(comparison):
    folder = comparison(seeds=1)
    (folder / "throughput.json").write_text('{"equal": {"ratio": "fast"}}')
    with pytest.raises(FolderError, match=r"throughput\.json"):
        ResultFolder(folder).results()


def test_only_the_plan_is_needed(comparison):
    folder = comparison(seeds=2)
    for name in ("runs.jsonl", "tuning.jsonl", "throughput.json"):
        (folder / name).unlink()
    results = ResultFolder(folder).results()
    assert (results.runs, results.tuning, results.throughput) == ((), (), {})


def test_the_command_line_catches_its_errors_as_wrong_settings():
    assert issubclass(FolderError, SettingError)


def test_runs_are_lines_that_come_back(tmp_path):
    folder = ResultFolder(tmp_path)
    assert folder.runs() == folder.tuning_runs() == []
    for seed in range(2):
        folder.add_run(Run("equal", seed, 1e-3))
    folder.add_tuning_run(Run("equal", 1000, 1e-2))
    assert [run.seed for run in folder.runs()] == [0, 1]
    assert [run.seed for run in folder.tuning_runs()] == [1000]


def test_a_line_that_was_cut_off_is_taken_out_and_the_next_run_stands_alone(tmp_path):
    folder = ResultFolder(tmp_path)
    folder.add_run(Run("equal", 0, 1e-3))
    append(tmp_path, "runs.jsonl", '{"method": "pub", "se')
    assert [run.method for run in folder.runs()] == ["equal"]
    folder.add_run(Run("clippy", 0, 1e-3))
    assert [run.method for run in folder.runs()] == ["equal", "clippy"]
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


def test_json_that_cannot_be_written_leaves_the_file_before_and_nothing_else(tmp_path):
    file = tmp_path / "plan.json"
    write_json(file, {"seeds": 3})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"seeds": float("nan")})
    assert json.loads(file.read_text()) == {"seeds": 3}
    assert list(tmp_path.iterdir()) == [file]
