"""Commands on data, as a newcomer types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from equipoise.cli import app
from tests.data.proposal.test_roles import logs


def run(*words: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it printed."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})
    return result.exit_code, result.output


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "logs.csv"
    logs().write_csv(path)
    return path


def test_a_proposed_file_passes_the_check_unedited(file: Path, tmp_path: Path) -> None:
    code, text = run("init", str(file))
    assert code == 0
    settings = tmp_path / "ranker.yaml"
    settings.write_text(text)
    code, shown = run("data", "check", str(settings))
    assert code == 0, shown
    assert "purchase" in shown
    assert "positives" in shown


def test_a_data_set_is_described_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("data: funnel\ndata_options: {rows: 3000}\n")
    code, shown = run("data", "describe", "s.yaml", "--out", "page.html")
    assert code == 0, shown
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_unknown_data_and_missing_files_are_one_message(tmp_path: Path) -> None:
    assert run("data", "check", "nosuch")[0] == 2
    code, shown = run("data", "check", "absent.yaml")
    assert code == 2
    assert "absent.yaml" in shown
    (tmp_path / "mails.csv").write_text("a,b\n1,2\n")
    code, shown = run("data", "check", str(tmp_path / "mails.csv"))
    assert code == 2
    assert "equipoise init" in shown


def test_settings_are_shown_in_full(tmp_path: Path) -> None:
    code, shown = run("config", "show")
    assert code == 0
    assert "features:" in shown
    (tmp_path / "s.yaml").write_text("data: funnel\nlr: 0.02\n")
    code, shown = run("config", "show", str(tmp_path / "s.yaml"))
    assert "\nlr: 0.02" in shown
