"""Runs the notebooks of `examples/notebooks` without Jupyter, and writes what their cells print into them.

After a change of a notebook: python examples/execute_notebooks.py
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "notebooks"


def printed(cells: list[dict[str, Any]], name: str) -> list[str]:
    """Run the code cells one after the other, with the same names; return what each prints."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for place, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("".join(cell["source"]), f"<{name}, cell {place}>", "exec"), names)
            found.append(out.getvalue())
    return found


def saved(cells: list[dict[str, Any]]) -> list[str]:
    """Return what the code cells print according to the file."""
    code = (cell for cell in cells if cell["cell_type"] == "code")
    return ["".join(line for output in cell["outputs"] for line in output["text"]) for cell in code]


def write(path: Path) -> None:
    """Run a notebook in a folder that is removed afterwards, and save what its cells print."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        texts = iter(printed(notebook["cells"], path.name))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, (cell, text) in enumerate(zip(code, texts, strict=True), start=1):
        cell["execution_count"] = count
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell["outputs"] = [stream] if text else []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        write(notebook)
        print(notebook.name)
