"""The documented evidence is that of the committed suite."""

import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]


def writer():
    """Return benchmarks/evidence_page.py as a module."""
    spec = importlib.util.spec_from_file_location("evidence_page", REPOSITORY / "benchmarks" / "evidence_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documented_section_is_that_of_the_committed_suite():
    found = writer()
    page = found.PAGE.read_text(encoding="utf-8")
    assert page == found.refreshed(page), "run python benchmarks/evidence_page.py"


def test_only_the_section_between_the_marks_is_written(monkeypatch):
    found = writer()
    monkeypatch.setattr(found, "section", lambda: "new\n")
    page = f"above\n{found.BEGIN}old\nlines\n{found.END}below\n"
    assert found.refreshed(page) == f"above\n{found.BEGIN}new\n{found.END}below\n"
