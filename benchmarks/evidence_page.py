"""Writes what the committed suite shows into its evidence.md, and into a section of docs/evidence.md.

python benchmarks/evidence_page.py
"""

from __future__ import annotations

from pathlib import Path

from equipoise.report.evidence import evidence_section, write_evidence_markdown

REPOSITORY = Path(__file__).resolve().parents[1]
SUITE = REPOSITORY / "benchmarks" / "evidence"
PAGE = REPOSITORY / "docs" / "evidence.md"
BEGIN, END = "<!-- begin of the suite -->\n", "<!-- end of the suite -->\n"


def section() -> str:
    """Return what belongs between the marks."""
    if not (SUITE / "suite.json").is_file():
        return "The suite has not been run yet: `equipoise evidence benchmarks/evidence.yaml` runs it.\n"
    return evidence_section(SUITE)


def refreshed(page: str) -> str:
    """Return the page with the section between its marks written anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{section()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if (SUITE / "suite.json").is_file():
        write_evidence_markdown(SUITE)
