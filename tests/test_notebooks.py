"""The notebooks run, print what is saved in them, and stand on the site."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from examples.execute_notebooks import printed, saved

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def words(text: str) -> str:
    """Return the text without numbers, bars and the widths of columns."""
    return " ".join(NUMBER.sub("0", text.replace("█", "")).split())


def numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("own_methods")
def test_a_notebook_prints_what_is_saved_in_it(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = cells_of(notebook)
    for found, expected in zip(printed(cells, notebook.name), saved(cells), strict=True):
        assert words(found) == words(expected)
        # Other versions of torch round otherwise, and a training carries that on.
        assert numbers(found) == pytest.approx(numbers(expected), rel=0.1, abs=0.03)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_links_of_a_notebook_lead_somewhere(notebook: Path) -> None:
    prose = "\n".join("".join(cell["source"]) for cell in cells_of(notebook) if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", prose)
    assert targets
    assert all((notebook.parent / target).is_file() for target in targets), targets


def test_the_site_shows_text_code_and_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    import notebooks

    output = {"name": "stdout", "output_type": "stream", "text": ["2\n"]}
    cells = [
        {"cell_type": "markdown", "source": ["# Sums\n", "Added."]},
        {"cell_type": "code", "source": ["print(1 + 1)"], "outputs": [output]},
    ]
    notebook = tmp_path / "sums.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    assert notebooks.page(notebook) == (
        '# Sums\nAdded.\n\n<a href="sums.ipynb" download>Download this notebook</a>\n\n'
        '````python\nprint(1 + 1)\n````\n\n````text title="It prints"\n2\n````\n'
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_in_the_navigation_and_named_by_the_first_page(notebook: Path) -> None:
    place = notebook.relative_to(ROOT).as_posix()
    assert f": repository/{place}.md\n" in (ROOT / "mkdocs.yml").read_text()
    assert place in (ROOT / "docs" / "hooks" / "pages.py").read_text()
    assert f"(../{place})" in (ROOT / "docs" / "start.md").read_text()
