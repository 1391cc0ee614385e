"""The page on own models and its examples: they run as written, in as few lines as promised."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from equipoise import data
from equipoise.comparison import runner as runner_module
from equipoise.comparison.results import Throughput
from equipoise.ranking.models import OwnModel, build_model
from tests.ranking.models.cuts import assert_cut_is_right, make_batch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "own-model.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

SETTING = """
import torch
from torch import nn

import equipoise
from equipoise.data import Dataset, Split
from equipoise.ranking.interactions import build_input
from equipoise.schema import Categorical, Numeric, Schema, Task

SCHEMA = Schema([Categorical("item", 50)], [Numeric("price"), Numeric("age")], [Task("click"), Task("buy")])


def rows(count):
    ids, numbers = torch.randint(50, (count, 1), dtype=torch.int32), torch.randn(count, 2)
    return Split(ids, numbers, (numbers + torch.randn(count, 2) > 1).float(), torch.ones(count))


logs = Dataset("my logs", SCHEMA, rows(600), rows(200), rows(300), batch_size=100)
batch = next(logs.test.batches(7))

"""
AFTER = """
    print(sorted({run.method for run in results.runs}), ranker.model(batch.categorical, batch.numeric)[0].shape)
    forked = equipoise.train(logs, "multibalance", model=Forked)
    batched = [equipoise.train(logs, method, model=Batched) for method in ("multibalance", "equal", "pub")]
    print(forked.run.status, *(found.run.status for found in batched), dense.shape)
"""


def run(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_runs_as_written(tmp_path: Path) -> None:
    model, calls, forked, batched, first_layer = BLOCKS
    assert "seeds=3" in calls
    script = SETTING + model + forked + batched + first_layer + calls.replace("seeds=3", "seeds=1, jobs=1") + AFTER
    (tmp_path / "mine.py").write_text(script)
    first, second = run([sys.executable, "-W", "ignore::DeprecationWarning", "mine.py"], tmp_path).splitlines()[-2:]
    assert first == "['equal', 'multibalance', 'pub'] torch.Size([7])"
    assert second == "ok ok ok ok torch.Size([7, 10])"
    assert (tmp_path / "run" / "weights.pt").is_file()


SETTINGS = "data: funnel\ndata_options: {rows: 600}\nmodel: my_models:Towers\nbatch_size: 128\nepochs: 1\n"
MODELS = """
import torch


class Towers(torch.nn.Module):
    def __init__(self, schema):
        super().__init__()
        self.table = torch.nn.Embedding(2000, 4)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in schema.tasks)

    def representation(self, categorical, numeric):
        return self.table(categorical.clamp(0, 1999)).mean(1)
"""


def test_the_command_finds_a_model_in_the_folder_it_is_run_in(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "ranker.yaml").write_text(SETTINGS)
    # -P: as the installed command, which does not look for modules in the working directory
    command = [sys.executable, "-P", "-m", "equipoise", "train", "ranker.yaml", "--out", "run"]
    run(command, tmp_path)
    assert (tmp_path / "run" / "weights.pt").is_file()


def test_the_examples_are_as_short_as_promised_and_use_no_part_of_equipoises_models() -> None:
    model, comparison = ((EXAMPLES / f"{name}.py").read_text() for name in ("own_model", "compare_own_model"))
    assert len(model.splitlines()) <= 80
    assert len(comparison.splitlines()) <= 15
    assert "equipoise" not in model
    assert f"PLE in {len(model.splitlines())} lines" in PAGE
    assert f"compares three methods on it in {len(comparison.splitlines())}." in PAGE.replace("\n", " ")


def test_the_example_compares_three_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (EXAMPLES / "compare_own_model.py").read_text()
    for given, fewer in (('"rows": 20_000', '"rows": 1500'), ('"seeds": 2, "epochs": 3', '"seeds": 1, "jobs": 1')):
        assert given in script
        script = script.replace(given, fewer)
    (tmp_path / "compare_own_model.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(runner_module, "throughput_ratio", lambda *_: Throughput(ratio=1.0))
    monkeypatch.setattr(runner_module, "peak_memory", lambda *_: 1000)
    runpy.run_path("compare_own_model.py", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {"equal", "multibalance", "pub"}


def test_the_examples_fork_stands_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    schema = data.load("funnel", rows=100).schema

    def build(fork):
        torch.manual_seed(0)
        model = build_model("own_model:DCNv2PLE", schema, fork=fork)
        assert isinstance(model, OwnModel)
        return model

    assert_cut_is_right(build, make_batch(schema))
