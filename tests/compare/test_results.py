"""A comparison's folder is read as far as it goes, and what is wrong in it is named."""

import json

import pytest

from equipoise.compare.results import ReportError, read_results
from equipoise.training import SettingError


def append(folder, name, text):
    with (folder / name).open("a") as file:
        file.write(text)


def test_a_finished_comparison_is_read_whole(comparison):
    results = read_results(comparison())
    assert len(results.runs) == results.planned == 40
    assert [run.seed for run in results.of("pub")] == [0, 1, 2, 3, 4]
    assert len(results.tuning) == 24
    assert results.throughput["equal"].ratio == 1


def test_a_line_that_is_just_being_written_is_left_out_and_left_alone(comparison):
    folder = comparison(seeds=1)
    append(folder, "runs.jsonl", '{"method": "equal", "se')
    assert len(read_results(folder).runs) == 8
    assert (folder / "runs.jsonl").read_text().endswith('"se')


def test_runs_that_the_plan_does_not_name_are_left_out(comparison):
    folder = comparison(methods=("equal", "pub"), seeds=2)
    of_plan = json.loads((folder / "runs.jsonl").read_text().splitlines()[0])
    for change in ({"seed": 7}, {"method": "clippy"}, {"lr": 0.5}):
        append(folder, "runs.jsonl", json.dumps(of_plan | change) + "\n")
    results = read_results(folder)
    assert len(results.runs) == 4
    assert {run.lr for run in results.runs} == {3e-3, 1e-3}


def test_a_folder_without_a_plan_says_what_to_do(tmp_path):
    with pytest.raises(ReportError, match=r"plan\.json.*run 'equipoise compare' first"):
        read_results(tmp_path)


def test_a_plan_with_a_missing_field_is_named(comparison):
    folder = comparison(seeds=1)
    plan = json.loads((folder / "plan.json").read_text())
    del plan["tasks"]
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ReportError, match="tasks: Field required"):
        read_results(folder)


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"method": "equal"}'])
def test_a_damaged_run_is_named_by_file_and_line(comparison, line):
    folder = comparison(methods=("equal",), seeds=1)
    append(folder, "runs.jsonl", line + "\n")
    with pytest.raises(ReportError, match=r"runs\.jsonl, line 2"):
        read_results(folder)


def test_damaged_throughput_is_named(comparison):
    folder = comparison(seeds=1)
    (folder / "throughput.json").write_text('{"equal": {"ratio": "fast"}}')
    with pytest.raises(ReportError, match=r"throughput\.json"):
        read_results(folder)


def test_only_the_plan_is_needed(comparison):
    folder = comparison(seeds=2)
    for name in ("runs.jsonl", "tuning.jsonl", "throughput.json"):
        (folder / name).unlink()
    results = read_results(folder)
    assert (results.runs, results.tuning, results.throughput) == ((), (), {})


def test_the_command_line_catches_its_errors_as_wrong_settings():
    assert issubclass(ReportError, SettingError)
