"""The examples of docs/beyond-memory.md run one after the other."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from equipoise.cli.commands import app
from tests.data.stream.test_preparing import description, raw_rows

PAGE = Path(__file__).parents[3] / "docs" / "beyond-memory.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text()
    monkeypatch.chdir(tmp_path)
    raw_rows(800, 0).write_parquet("log.parquet")
    raw_rows(40, 1).write_parquet("new.parquet")
    config = description(Path("log.parquet"), tasks={"click": "click"})
    Path("ranker.yaml").write_text(yaml.safe_dump({"data": config, "lr": 0.01}))
    commands = re.findall(r"^equipoise (.*?)(?:#.*)?$", page, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command))
        assert result.exit_code == 0, result.output
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert "'train', rows=" in capsys.readouterr().out
    assert names["again"].state_dict() == names["state"]
