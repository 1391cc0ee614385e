"""An audit runs from settings to its page, keeps what it has found, and goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor, nn
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.comparison.audit import audit, read_audit
from equipoise.comparison.jobs import RunListener
from equipoise.errors import SettingError
from equipoise.report.audit_page import write_audit
from equipoise.schema import Schema
from equipoise.settings import Settings

SMALL = {"data": "funnel", "data_options": {"rows": 1500}, "epochs": 1, "batch_size": 256}


class StopAfter(RunListener):
    """Ends the audit after so many trials of the search."""

    def __init__(self, trials: int) -> None:
        self.left = trials
        self.searching = False

    def phase_started(self, title: str, parts: int, done: int = 0, /) -> None:
        self.searching = title.startswith("Searching")

    def run_done(self, *_: object) -> None:
        self.left -= self.searching
        if not self.left:
            raise KeyboardInterrupt


def test_an_audit_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    settings = Settings.of(**SMALL)
    audit(settings, tmp_path / "whole", seeds=1, trials=4, jobs=1)
    with pytest.raises(KeyboardInterrupt):
        audit(settings, tmp_path / "stopped", seeds=1, trials=4, jobs=1, listener=StopAfter(3))
    audit(settings, tmp_path / "stopped", seeds=1, trials=4, jobs=1)
    whole, stopped = (read_audit(tmp_path / name)[0] for name in ("whole", "stopped"))
    assert whole.trials == stopped.trials
    assert whole.probes == stopped.probes
    assert [run.validation for run in whole.confirmed_runs()] == [run.validation for run in stopped.confirmed_runs()]


def test_where_no_rate_was_tuned_equal_weights_choose_one_for_all(tmp_path: Path) -> None:
    audit(Settings.of(**SMALL, model="mmoe"), tmp_path, seeds=1, trials=1, jobs=1)
    found, results = read_audit(tmp_path)
    assert found.rate_tuned
    assert len(set(results.plan.rates.values())) == 1
    assert json.loads((tmp_path / "rate.json").read_text())["lr"] == results.plan.rates["equal"]


def test_a_stated_rate_is_taken(tmp_path: Path) -> None:
    audit(Settings.of(**SMALL, lr=0.02), tmp_path, seeds=1, trials=1, jobs=1)
    found, results = read_audit(tmp_path)
    assert not found.rate_tuned
    assert set(results.plan.rates.values()) == {0.02}
    assert {run.lr for run in found.confirmed_runs()} == {0.02}


def test_a_method_that_the_recipe_excludes_is_left_out_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    listener = RunListener()
    listener.noted = said.append  # type: ignore[method-assign]
    settings = Settings.of(**SMALL, lr=0.02, table_optimizer="rowwise-adagrad")
    audit(settings, tmp_path, seeds=1, trials=1, jobs=1, listener=listener)
    assert [line for line in said if line.startswith("pub is left out. Method 'pub' steps the tables together")]
    results = read_audit(tmp_path)[1]
    assert [method.name for method in results.plan.methods] == ["equal", "single-task", "multibalance"]
    assert write_audit(tmp_path).is_file()


def test_a_model_that_cannot_be_audited_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    settings = Settings.of(**SMALL, model=f"{__name__}:Unforked")
    with pytest.raises(SettingError, match="places no fork"):
        audit(settings, tmp_path / "audit", seeds=1, trials=1, jobs=1)
    assert not (tmp_path / "audit").exists()


class Unforked(nn.Module):
    """A model that says nowhere where its tasks part."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.layer = nn.Linear(len(schema.numeric_columns), len(schema.tasks))

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        return self.layer(numeric)


def test_one_task_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="at least two tasks"):
        audit(Settings.of(data=f"{__name__}:one_task"), tmp_path)


def one_task() -> object:
    """Return a data set of one task."""
    from dataclasses import replace

    from equipoise.data import load
    from equipoise.schema import Schema

    found = load("funnel", rows=1500)
    schema = Schema(found.schema.categorical, found.schema.numeric, found.schema.tasks[:1])
    splits = {
        name: replace(getattr(found, name), labels=getattr(found, name).labels[:, :1])
        for name in ("train", "validation", "test")
    }
    return replace(found, schema=schema, best_ne={}, **splits)


def test_the_command_prints_the_advice_and_where_the_page_lies(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("data: funnel\ndata_options: {rows: 1500}\nepochs: 1\nbatch_size: 256\n")
    words = ["audit", str(file), "--seeds", "1", "--trials", "1", "--jobs", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "Too few seeds to advise" in result.output
    assert (tmp_path / "out" / "audit.html").is_file()
    again = CliRunner().invoke(app, [*words[:-1], str(tmp_path)])
    assert again.exit_code == 0
