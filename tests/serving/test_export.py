"""Exported programs predict what the model predicts, for every kind of feature, task and model, without equipoise."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

import equipoise
from equipoise.data import load
from equipoise.errors import SettingError
from equipoise.forks import Fork
from equipoise.ranking.models import build_model
from equipoise.schema import Categorical, Categories, Numeric, Sampled, Schema, Task, Vector
from equipoise.serving import Ranker
from equipoise.serving.export import Scorer, difference, export_ranker, random_inputs
from tests.ranking.models.samples import EVERY_KIND, every_model, make
from tests.serving.conftest import logs

ABOUT = {"data": "logs", "model": "shared-bottom", "method": "equal", "trained_with": {}}


def test_the_folder_says_what_it_holds(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md", "encoder.py", "encoding.json", "export.json", "model.onnx", "model.pt2"
    ]  # fmt: skip
    assert [path.name for path in exported.parent.iterdir()] == ["export"]
    manifest = json.loads((exported / "export.json").read_text())
    assert manifest["raw_columns"] == ["zip", "age", "recency"]
    assert manifest["inputs"]["categorical"] == {"dtype": "int64", "columns": ["zip"]}
    assert [(task["name"], task["meaning"]) for task in manifest["outputs"]] == [
        ("visit", "probability, at the natural rate"),
        ("conversion", "probability, at the natural rate"),
    ]
    assert manifest["programs"]["model.pt2"]["largest_difference"] <= 1e-5


def test_the_program_holds_no_state_of_the_training(ranker: Ranker, exported: Path) -> None:
    program = torch.export.load(exported / "model.pt2")
    assert not [name for name in program.state_dict if "fork" in name]
    assert any(isinstance(part, Fork) for part in ranker.model.modules())  # the ranker keeps its own


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_the_program_takes_any_number_of_rows(rows: int, ranker: Ranker, exported: Path) -> None:
    program = torch.export.load(exported / "model.pt2").module()
    inputs = random_inputs(ranker.schema, rows, seed=5)
    assert difference(program(*inputs), Scorer(ranker.model, ranker.schema)(*inputs)) <= 1e-6


SCHEMAS = {
    "ids alone": Schema([Categorical("zip", 5)], [], [Task("click"), Task("buy")]),
    "numbers alone": Schema([], [Numeric("age")], [Task("click"), Task("buy")]),
    "tasks of all kinds, sampled": Schema(
        [Categorical("zip", 5)],
        [Numeric("age")],
        [
            Task("click", positive_weight=3.0),
            Task("buy", after="click", over="all"),
            Task("spend", kind="regression", mean=3.0, scale=2.0, loss="log", after="buy"),
            Task("watch", kind="regression", mean=30.0, scale=20.0),
        ],
        Sampled("click", 0.01),
    ),
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_programs_of_every_schema_agree_with_the_model(kind: str, tmp_path: Path) -> None:
    schema = SCHEMAS[kind]
    torch.manual_seed(0)
    export_ranker(build_model("shared-bottom", schema), schema, None, tmp_path / "out", onnx=True, about=ABOUT)
    found = json.loads((tmp_path / "out" / "export.json").read_text())["programs"]
    assert set(found) == {"model.pt2", "model.onnx"}
    assert all(program["largest_difference"] <= 1e-5 for program in found.values())


@every_model
def test_every_model_is_exported(name: str, tmp_path: Path) -> None:
    export_ranker(make(name, EVERY_KIND, forked=True), EVERY_KIND, None, tmp_path / "out", about=ABOUT)
    assert (tmp_path / "out" / "model.pt2").is_file()


def test_models_of_single_tasks_are_exported_as_one(train_on_logs: Callable[..., Ranker], tmp_path: Path) -> None:
    ranker = train_on_logs("single-task")
    program = torch.export.load(ranker.export(tmp_path / "export") / "model.pt2").module()
    inputs = random_inputs(ranker.schema, 9)
    assert difference(program(*inputs), Scorer(ranker.model, ranker.schema)(*inputs)) <= 1e-6


def test_random_inputs_reach_every_id_and_end_in_padding() -> None:
    schema = Schema(
        [Categorical("zip", 3), Categories("seen", 4, 3)], [Numeric("age"), Vector("image", 2)], [Task("click")]
    )
    ids, numbers = random_inputs(schema, 400)
    assert ids.shape == (400, 4)
    assert numbers.shape == (400, 3)
    assert set(ids[:, 0].tolist()) == {0, 1, 2}
    assert set(ids[:, 1:].flatten().tolist()) == {-1, 0, 1, 2, 3}
    padded = ids[:, 1:] == -1
    assert not (padded[:, :-1] & ~padded[:, 1:]).any()


def test_a_difference_is_relative_above_one_and_infinite_for_nan() -> None:
    right = {"spend": torch.tensor([0.5, 200.0])}
    assert difference({"spend": torch.tensor([0.5, 202.0])}, right) == pytest.approx(0.01)
    assert difference({"spend": torch.tensor([0.5, torch.nan])}, right) == torch.inf


class Noisy(nn.Module):
    def forward(self, _: Tensor, numeric: Tensor) -> list[Tensor]:
        return [numeric[:, 0] + torch.rand_like(numeric[:, 0])]


class Choosing(nn.Module):
    def forward(self, _: Tensor, numeric: Tensor) -> list[Tensor]:
        return [numeric[:, 0] if bool(numeric.sum() > 0) else -numeric[:, 0]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Noisy(), r"expected the model's predictions to 1e-05, found a difference of .*random numbers"),
        (Choosing(), r"torch.export cannot export Choosing .*without choices that depend on values"),
    ],
    ids=["noisy", "choosing"],
)
def test_a_model_that_cannot_be_exported_leaves_nothing(model: nn.Module, message: str, tmp_path: Path) -> None:
    schema = Schema([], [Numeric("age")], [Task("click")])
    with pytest.raises(SettingError, match=message):
        export_ranker(model, schema, None, tmp_path / "out", about=ABOUT)
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_is_replaced_and_anything_else_is_not(ranker: Ranker, tmp_path: Path) -> None:
    out = ranker.export(tmp_path / "export")
    (out / "left over").touch()
    ranker.export(out)
    assert not (out / "left over").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for place in ("mine", "mine/thesis.txt"):
        with pytest.raises(SettingError, match="or an earlier export, found something else"):
            ranker.export(tmp_path / place)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_failure_keeps_the_earlier_export(ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ranker.export(tmp_path / "export")
    before = (out / "export.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space left"):
        ranker.export(out)
    assert (out / "export.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


def test_onnx_without_its_packages_says_what_to_install(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SettingError, match=r"needs the package 'onnxscript'.*pip install '\.\[serving\]'"):
        ranker.export(tmp_path / "export", onnx=True)


def test_aoti_without_a_compiler_says_what_to_install(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingError, match=r"needs a compiler, found no 'no-such-compiler'.*model\.pt2 runs without"):
        ranker.export(tmp_path / "export", aoti=True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles C++")
def test_compiled_code_agrees_with_the_model(tmp_path: Path) -> None:
    schema = Schema([], [Numeric("age")], [Task("click")])
    export_ranker(build_model("shared-bottom", schema, bottom=(4,), tower=()), schema, None, tmp_path / "out",
                  aoti=True, about=ABOUT)  # fmt: skip
    found = json.loads((tmp_path / "out" / "export.json").read_text())["programs"]
    assert found["model.aoti.pt2"]["largest_difference"] <= 1e-5


ALONE = """
import json, sys
for name in ("equipoise", "polars", "pyarrow", "pandas", "pydantic", *sys.argv[3:]):
    sys.modules[name] = None  # importing it fails
rows = json.load(open(sys.argv[1]))
exec(open(sys.argv[2]).read())
print(json.dumps(predict(rows)))
"""


def predictions_alone(out: Path, rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Run the code of the export's README in processes without equipoise; return predictions by program."""
    blocks = re.findall(r"^```python\n(.*?)^```", (out / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    found = {}
    (out.parent / "rows.json").write_text(json.dumps(rows))
    for name, block, blocked in zip(("torch", "onnx"), blocks, ([], ["torch"]), strict=True):
        script = out.parent / f"{name}.py"
        script.write_text(block)
        command = [sys.executable, "-c", ALONE, out.parent / "rows.json", script, *blocked]
        environment = {"PYTHONPATH": str(out), "PATH": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    return found


def test_the_readme_of_the_export_predicts_raw_rows_without_equipoise(
    ranker: Ranker, exported: Path, tmp_path: Path
) -> None:
    rows = logs(40, seed=3)
    out = shutil.copytree(exported, tmp_path / "export")
    asked = rows.select("zip", "age", "recency").with_columns(pl.col("age").fill_nan(None)).to_dicts()
    expected = ranker.predict(rows)
    for found in predictions_alone(out, asked).values():
        for task in expected.columns:
            np.testing.assert_allclose(found[task], expected[task], atol=1e-5)


def test_a_data_set_without_a_table_is_exported_for_callers_that_encode(tmp_path: Path) -> None:
    ranker = equipoise.train(load("funnel", rows=1500), "equal", epochs=1, batch_size=256)
    out = ranker.export(tmp_path / "export")
    assert not (out / "encoder.py").exists()
    assert "the caller encodes its rows" in (out / "README.md").read_text()
