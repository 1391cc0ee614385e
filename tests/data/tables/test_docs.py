"""The page on own data is true: its example runs as printed, and its table has every key."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.data.tables.key_table import key_table

PAGE = (Path(__file__).parents[3] / "docs" / "own-data.md").read_text(encoding="utf-8")
BEFORE_THE_ENCODING = PAGE[: PAGE.index("## The encoding\n")]


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", BEFORE_THE_ENCODING, flags=re.MULTILINE | re.DOTALL):
        if language == "yaml":
            Path("mails.yaml").write_text(block)
        elif language == "python":
            exec(compile(block, "docs/own-data.md", "exec"), names)
        else:
            for line in block.splitlines():
                result = CliRunner().invoke(app, line.partition("#")[0].split()[1:], catch_exceptions=False)
                assert result.exit_code == 0, result.output
    assert "Split by time (sent_at): train before 2026-01-1" in capsys.readouterr().out
    assert Path("run", "run.json").is_file()


def test_every_key_is_in_the_table() -> None:
    assert key_table() in PAGE, "write the table of equipoise.data.tables.key_table.key_table() into docs/own-data.md"
