"""`equipoise train --model` trains every model of the package."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from equipoise.cli import app
from tests.ranking.models.samples import OWN

FUNNEL = ["--data", "funnel", "--rows", "700", "--batch-size", "128", "--epochs", "1", "--table-decay", "0"]


@pytest.mark.parametrize(("name", "method"), [*zip(OWN, cycle(["equal", "multibalance", "pub"]), strict=False)])
def test_every_model_trains_on_the_funnel(name: str, method: str, tmp_path: Path) -> None:
    option = ["--model-option", "embedding_dim=2"]
    if name == "star":
        option += ["--model-option", "scenario=placement"]
    words = ["train", *FUNNEL, "--model", name, *option, "--method", method, "--lr", "0.003", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "run.json").read_text())
    assert all(0 < values["log_loss"] < 5 for values in written["test"].values())
