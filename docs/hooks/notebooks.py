"""Notebooks as pages of the site."""

import json
from pathlib import Path


def page(notebook: Path) -> str:
    """Return a notebook as Markdown: its text, its code, what the code prints, and a link to the notebook itself."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"````python\n{source}\n````")
        if printed := "".join(line for output in cell["outputs"] for line in output["text"]):
            parts.append(f'````text title="It prints"\n{printed.rstrip()}\n````')
    download = f'<a href="{notebook.name}" download>Download this notebook</a>'
    return "\n\n".join([parts[0], download, *parts[1:]]) + "\n"
