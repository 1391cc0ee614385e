"""A suite: its YAML is checked whole before anything runs; it is resumable, and its folder names what it holds."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.comparison import jobs as jobs_module
from equipoise.comparison.result_folder import ResultFolder
from equipoise.comparison.suite import Suite, run_suite
from equipoise.errors import SettingError

SMALL = {
    "title": "Small",
    "common": {
        "data": "funnel", "data_options": {"rows": 2000}, "methods": ["equal", "multibalance"], "seeds": 2,
        "epochs": 1, "batch_size": 256, "evaluations": 1, "tune": True, "tune_trials": 2,
    },
    "settings": {
        "shared": {"title": "Shared bottom"},
        "experts": {"model": "mmoe", "note": "Smaller.", "seeds": 1, "short": {"epochs": 2}},
    },
    "short": {"seeds": 1, "tune_trials": 1},
}  # fmt: skip


def test_own_settings_override_common_ones_and_the_short_form_overrides_both() -> None:
    suite = Suite.of(SMALL)
    assert suite.comparison("shared").seeds == 2
    assert suite.comparison("experts").seeds == 1
    assert suite.comparison("experts").model == "mmoe"
    assert suite.comparison("shared", short=True).tune_trials == 1
    assert suite.comparison("experts", short=True).epochs == 2
    assert suite.comparison("experts").epochs == 1
    assert suite.entry("experts").title == "experts"


def test_the_documented_suite_can_be_used() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    suite = Suite.of(yaml.safe_load(text))
    assert suite.comparison("opposed").data_options == {"rows": 100_000, "conflict": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {}}, "at least 1 item"),
        ({"setings": {}}, "setings"),
        ({"settings": {"Big Name": {}}}, "lower"),
        ({"settings": {"one": {"seedz": 1}}}, "'one' of the suite.*seedz"),
        ({"settings": {"one": {"lr": -1}}}, "'one' of the suite.*lr"),
        ({"settings": {"one": {"sharding": "fsdp"}}}, "sharding: not of `equipoise compare`"),
        ({"short": {"tune_trials": 0}}, "tune_trials"),
    ],
)  # fmt: skip
def test_a_suite_that_cannot_be_used_is_refused_with_the_place(change: dict, message: str) -> None:
    with pytest.raises(SettingError, match=f"(?s){message}"):
        Suite.of(SMALL | change)


def test_a_suite_runs_every_comparison_keeps_metrics_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    train = jobs_module.train

    def counted(*args: object, **settings: object):
        made.append(settings["seed"])
        if len(made) == 12:
            raise KeyboardInterrupt
        return train(*args, **settings)

    monkeypatch.setattr(jobs_module, "train", counted)
    suite = Suite.of(SMALL)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path, speed=False, jobs=1)
    run_suite(suite, tmp_path, speed=False, jobs=1)
    assert len(made) == 2 * (2 + 2) + 2 * (2 + 1) + 1  # methods, trials and seeds of both; the cut off one twice
    found = json.loads((tmp_path / "suite.json").read_text())
    assert found["settings"][0] == {"name": "shared", "title": "Shared bottom", "note": ""}
    results = ResultFolder(tmp_path / "shared").results()
    assert len(results.runs) == results.planned == 4
    assert all(run.test and run.validation and not (run.curve or run.slices or run.settings) for run in results.runs)
    again = ResultFolder(tmp_path / "experts").results()
    assert {run.seed for run in again.runs} == {0}


def test_only_some_comparisons_run_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    suite = Suite.of(SMALL)
    run_suite(suite, tmp_path, only=["experts"], short=True, speed=False, jobs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"suite.json", "experts"}
    with pytest.raises(SettingError, match="out of shared, experts; found towers"):
        run_suite(suite, tmp_path, only=["towers"])


def test_the_command_says_what_is_wrong_and_where_the_results_are(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("title: Broken\nsettings: {one: {seedz: 1}}\n")
    refused = CliRunner().invoke(app, ["evidence", str(file)])
    assert refused.exit_code == 2
    assert "seedz" in refused.output
    file.write_text(json.dumps(SMALL))
    words = ["evidence", str(file), "--out", str(tmp_path / "out"), "--only", "experts", "--short", "--no-speed"]
    done = CliRunner().invoke(app, [*words, "--jobs", "1"])
    assert done.exit_code == 0
    assert "Evidence:" in done.output
    assert (tmp_path / "out" / "evidence.html").is_file()
    assert CliRunner().invoke(app, ["report", str(tmp_path / "out"), "--markdown"]).exit_code == 0
    assert "Not begun: Shared bottom." in (tmp_path / "out" / "evidence.md").read_text()
