"""Tables and words of a report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from equipoise.report.cells import Cell, Table

__all__ = ["markdown_table", "no_tags", "one_line"]


def one_line(cell: Cell) -> str:
    """Return both lines of a cell as one."""
    return f"{cell.text} ({cell.below})" if cell.below else cell.text


def markdown_table(table: Table) -> Sequence[str]:
    """Return the lines of a table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        escaped = [no_tags(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells]
        return f"| {' | '.join(escaped)} |"

    return [
        line([column.title for column in table.columns]),
        line(["---:" if column.numeric else "---" for column in table.columns]),
        *(line([one_line(cell) for cell in row.cells]) for row in table.rows),
    ]


def no_tags(words: str) -> str:
    """Escape names of users, so that none becomes a tag where Markdown is shown as HTML."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", words)
