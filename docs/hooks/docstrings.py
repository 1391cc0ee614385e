"""Docstrings as Markdown: the few forms of reStructuredText in them, for the reference and the pages on methods."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rooms import public_place

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`~?([^`]+)`")
LINK = re.compile(r"`([^`<]+?)\s*<(https?://[^>]+)>`_")
RULER = re.compile(r"^( *)=+( +=+)+ *$")


def markdown(docstring: str, *, crossrefs: bool = True) -> str:
    """Return a cleaned docstring in Markdown; roles become links into the reference where that has their object."""
    text = "\n".join(_tables_converted(_plain_blocks(docstring.splitlines())))
    text = LINK.sub(lambda found: f"[{' '.join(found[1].split())}]({found[2]})", text)
    text = ROLE.sub(lambda found: _reference(found[1], crossrefs=crossrefs), text)
    text = re.sub(r"^\.\. math::$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _reference(name: str, *, crossrefs: bool) -> str:
    short = re.sub(r"^equipoise\.(?:[a-z_]+\.)*", "", name)
    place = public_place(name) if crossrefs else None
    return f"[`{short}`][{place}]" if place else f"`{short}`"


def _plain_blocks(lines: list[str]) -> Iterator[str]:
    """Yield lines, with the marks of code taken out of indented blocks below ``::``, which are code as a whole."""
    outside: int | None = None  # the indent of the line that ends in ::
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if outside is not None and line.strip() and indent <= outside:
            outside = None
        yield line if outside is None else line.replace("``", "")
        if line.endswith("::"):
            outside = indent


def _tables_converted(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines, with simple tables (rulers of ``===``) written as tables of Markdown."""
    for line in lines:
        if not RULER.match(line):
            yield line
            continue
        starts = [found.start() for found in re.finditer(r"=+", line)]
        yield from _as_rows(_cells(next(lines), starts), starts, lines)


def _as_rows(header: list[str], starts: list[int], left: Iterator[str]) -> Iterator[str]:
    rows = [header]
    next(left)  # the ruler below the header
    for line in left:
        if RULER.match(line):
            break
        cells = _cells(line, starts)
        if cells[0]:
            rows.append(cells)
        else:  # goes on with the row above
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    indent = " " * starts[0]
    yield f"{indent}| {' | '.join(rows[0])} |"
    yield f"{indent}|{'---|' * len(starts)}"
    for row in rows[1:]:
        yield f"{indent}| {' | '.join(row)} |"


def _cells(line: str, starts: list[int]) -> list[str]:
    ends = [*starts[1:], None]
    return [line[start:end].strip().replace("|", "\\|") for start, end in zip(starts, ends, strict=True)]
