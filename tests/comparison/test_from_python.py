"""Comparisons from Python take objects where the command takes names, in worker processes, too."""

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise import data
from equipoise.comparison import compare
from equipoise.comparison import runner as runner_module
from equipoise.comparison.result_folder import FolderError
from equipoise.comparison.results import Throughput
from equipoise.errors import MisplacedForkWarning, SettingError
from equipoise.forks import MultiBalance
from equipoise.methods import METHODS, Method
from equipoise.ranking.models import MODELS, RankingModel, SharedBottom

SMALL = {"seeds": 1, "epochs": 1, "batch_size": 256}
SLOW = Method("slow-balance", label="Slow balance", fork=MultiBalance, options={"gamma": 0.001})


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "throughput_ratio", lambda *_: Throughput(ratio=1.0))
    monkeypatch.setattr(runner_module, "peak_memory", lambda *_: 1000)


@pytest.fixture(autouse=True)
def _nothing_registered() -> object:
    before = METHODS.registered(), MODELS.registered()
    yield
    METHODS.restore(before[0])
    MODELS.restore(before[1])


def narrow(schema, fork):
    """A model of this module."""
    return SharedBottom(schema, fork=fork, bottom=(8,))


class Bypassed(RankingModel):
    """A model whose first task goes round the fork."""

    def __init__(self, schema, fork=None):
        super().__init__(schema)
        self.bottom = nn.Linear(len(schema.numeric), 4)
        self.fork = self.new_fork(fork)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in schema.tasks)

    def forward(self, categorical, numeric):
        z = self.bottom(numeric)
        branches = [z, *self.branches(self.fork, z)[1:]]
        return tuple(head(branch).squeeze(1) for head, branch in zip(self.heads, branches, strict=True))


@pytest.fixture(scope="module")
def funnel() -> data.Dataset:
    return replace(data.load("funnel", rows=1500), name="my logs", best_ne={})


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_data_set_a_method_and_a_model_are_taken_as_objects(tmp_path: Path, funnel: data.Dataset, jobs: int) -> None:
    methods = ["equal", SLOW] if jobs == 1 else [SLOW, "multibalance"]
    results = compare(funnel, model=narrow, methods=methods, out=tmp_path, jobs=jobs, **SMALL)
    assert {run.method for run in results.runs} == {getattr(entry, "name", entry) for entry in methods}
    assert {run.status for run in results.runs} == {"ok"}
    assert results.plan.dataset == "my logs"
    assert results.plan.from_python == ["data", "methods"]
    assert results.plan.options["model"] == "tests.comparison.test_from_python:narrow"


def test_the_data_set_that_is_given_is_the_one_that_is_trained_on(tmp_path: Path, funnel: data.Dataset) -> None:
    """A data set object with the name of a known one is not replaced by the known one."""
    fewer = replace(funnel, name="funnel", train=replace(funnel.train, labels=1 - funnel.train.labels))
    run = compare(fewer, methods=["equal"], out=tmp_path, jobs=1, **SMALL).runs[0]
    assert json.loads((tmp_path / "plan.json").read_text())["rows"]["train"] == 1050
    assert run.test["click"]["calibration"] > 1.5


def test_other_features_are_not_mixed_into_the_same_folder(tmp_path: Path, funnel: data.Dataset) -> None:
    compare(funnel, methods=["equal"], out=tmp_path, jobs=1, **SMALL)
    other = replace(funnel, train=replace(funnel.train, numeric=1 + funnel.train.numeric))
    with pytest.raises(FolderError, match="the same labels there as here, but other features"):
        compare(other, methods=["equal"], out=tmp_path, jobs=1, **{**SMALL, "seeds": 2})
    assert len(compare(funnel, methods=["equal"], out=tmp_path, jobs=1, **{**SMALL, "seeds": 2}).runs) == 2


def test_other_labels_are_not_mixed_into_the_same_folder(tmp_path: Path, funnel: data.Dataset) -> None:
    compare(funnel, methods=["equal"], out=tmp_path, jobs=1, **SMALL)
    other = replace(funnel, test=replace(funnel.test, labels=torch.zeros_like(funnel.test.labels)))
    with pytest.raises(FolderError, match="as many rows there as here, but other labels"):
        compare(other, methods=["equal"], out=tmp_path, jobs=1, **SMALL)


def test_a_model_that_no_worker_could_find_is_refused(funnel: data.Dataset, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="at the top level of a module"):
        compare(funnel, model=lambda schema, fork: SharedBottom(schema, fork=fork), out=tmp_path)
    assert not list(tmp_path.iterdir())


SCRIPT = """
from equipoise.comparison import compare

compare("funnel", data_options={"rows": 1500}, methods=["equal", "multibalance"], batch_size=256, jobs=2, out="out")
"""


def test_a_script_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ended before they began" in last
    assert 'put the call under `if __name__ == "__main__":`' in last
    assert "memory" not in done.stderr
    assert not (tmp_path / "out" / "runs.jsonl").exists()


def test_a_misplaced_fork_is_named_once_for_all_workers_and_not_by_them(
    funnel: data.Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        compare(funnel, model=Bypassed, methods=["multibalance", SLOW], out=tmp_path, jobs=2, **SMALL)
    (message,) = [str(warning.message) for warning in found if warning.category is MisplacedForkWarning]
    assert "The loss of 'click' does not read its branch of fork 'fork'." in message
    assert "MisplacedForkWarning" not in capfd.readouterr().err


def test_the_page_on_python_runs_as_a_script(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "from-python.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "seeds=3" in block
    (tmp_path / "mine.py").write_text(block.replace("seeds=3", "seeds=1"))
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *runs, report, auc = done.stdout.splitlines()
    assert {line.split()[0] for line in runs} == {"equal", "multibalance", "equalised"}
    assert report == "see cmp/report.html"
    assert (tmp_path / "cmp" / "report.html").is_file()
    assert float(auc) > 0.6
