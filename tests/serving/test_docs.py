"""The page on serving runs from top to bottom: its commands, its settings and its code."""

import re
import shlex
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from equipoise.cli import app
from tests.serving.conftest import logs

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "encoder", raising=False)
    (settings,) = blocks("yaml")
    Path("campaign.yaml").write_text(f"{settings}batch_size: 64\n")
    logs(600).fill_nan(None).write_csv("campaign.csv")
    moon = pl.when(pl.col("user_id") < 10).then(pl.lit("the moon")).otherwise("zip").alias("zip")
    logs(100, seed=1).fill_nan(None).with_columns(moon).write_csv("new.csv")
    commands, _ = blocks("sh")
    said = []
    for line in commands.splitlines():
        program, *words = shlex.split(line)
        assert program == "equipoise"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        said.append(result.output)
    assert blocks("text")[0] in said[1]
    assert pl.read_parquet("predictions.parquet").columns == ["user_id", "visit", "conversion"]
    listed = set(re.findall(r"`([\w.]+\.(?:pt2|onnx|json|py|md))`", PAGE[PAGE.index("## Export") :]))
    assert {path.name for path in Path("export").iterdir()} <= listed
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "docs/serving.md", "exec"), names)
    assert names["found"]["visit"].shape == (1,)
    monkeypatch.delitem(sys.modules, "encoder", raising=False)
