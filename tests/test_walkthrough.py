"""The walk-through from logs to a served ranker runs as it is written, with fewer trainings."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from equipoise.cli import app

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "walkthrough.md").read_text()
KUAIRAND = Path(os.environ.get("EQUIPOISE_DATA", "/nonexistent")) / "kuairand"


def commands(title: str) -> Iterator[str]:
    """Yield the commands of one section of the page."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
        yield from block.splitlines()


def run(line: str) -> str:
    """Run one command of the page; trainings are cut to one seed, one trial, one epoch and few steps."""
    short = re.sub(r"--seeds \d+", "--seeds 1 --epochs 1 --batch-size 2048 --jobs 1", line)
    words = shlex.split(re.sub(r"-trials \d+", "-trials 1", short))
    target = Path(words[-1]) if ">" in words else None
    if words[0] != "equipoise":
        words[0] = sys.executable if words[0] == "python" else words[0]
        subprocess.run(words, check=True, capture_output=True)
        return ""
    result = CliRunner().invoke(app, words[1 : words.index(">")] if target else words[1:], env={"COLUMNS": "100"})
    assert result.exit_code == 0, f"{line}\n{result.output}"
    if target:
        target.write_text(result.stdout)
    return result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    return tmp_path


def test_the_campaign_goes_all_the_way(folder: Path) -> None:
    for line in commands("An e-mail campaign"):
        run(line)
    (excerpt,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    proposed = re.sub(r" +# .*", "", (folder / "email.yaml").read_text())
    assert excerpt in proposed + "\n"
    found = pl.read_parquet(folder / "email-predictions.parquet")
    assert found.height == 64_000
    assert (folder / "email-compare" / "report.html").is_file()
    assert (folder / "email-audit" / "audit.html").is_file()
    assert (folder / "email.html").is_file()


@pytest.mark.skipif(not KUAIRAND.is_dir(), reason="needs EQUIPOISE_DATA with the KuaiRand slice")
def test_the_feed_goes_all_the_way(folder: Path) -> None:
    (folder / "kuairand").symlink_to(KUAIRAND)
    for line in commands("A feed of short videos"):
        run(line)
    found = pl.read_parquet(folder / "feed-predictions.parquet")
    assert found.height == 41_828
    assert found.columns[:2] == ["user_id", "video_id"]
    assert "hourmin:" not in (folder / "feed.yaml").read_text()
