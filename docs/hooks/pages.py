"""The hooks of the documentation site.

They add what lies outside ``docs/`` and is linked from there, the pages of the reference and the sections on methods,
and keep numbers with their units.
The pages themselves stay plain Markdown, whose links work on a repository host as well.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import method_pages
import rooms
import typography
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import notebooks

ROOT: Final = Path(__file__).resolve().parents[2]
ALWAYS: Final = (
    "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md",
    "benchmarks/evidence/evidence.md", "benchmarks/results/README.md",
    "examples/notebooks/own-data.ipynb", "examples/notebooks/own-method.ipynb",
    "examples/notebooks/reading-a-monitor.ipynb",
)  # fmt: skip
"""Files of the repository that the navigation names; others come in where a page links to them."""
FENCES: Final = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}
LINK: Final = re.compile(r"(\]\()(?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]*)?(\))")
CODE: Final = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)

_included: dict[str, str] = {}
"""File of the repository -> its place in the site's sources."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that are linked from ``docs/``, and the pages of the reference."""
    _included.clear()
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting = [*ALWAYS, *(target for page in pages for target in _outside(page))]
    while waiting:
        path = waiting.pop()
        if path in _included:
            continue
        _include(path, files, config)
        if path.endswith(".md"):
            waiting += _outside(path)
    for uri, content in reference_pages():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Point links that leave ``docs/`` to the included files, and fill in the sections on methods."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    origin = next((path for path, place in _included.items() if place == uri), f"docs/{uri}")
    text = _outside_code(markdown, lambda text: LINK.sub(lambda it: _link(it, origin, uri), text))
    return method_pages.link_rows(text) if uri == "methods.md" else method_pages.fill(text)


def on_page_content(html: str, **_: Any) -> str:
    """Keep numbers and names of options on one line."""
    return typography.keep_together(html)


def reference_pages() -> Iterator[tuple[str, str]]:
    """Yield the place and text of each page of the reference."""
    lines = [
        "# Reference",
        "",
        "The public names of every module. `import equipoise` has those of the second table directly.",
        "",
    ]
    lines += ["| module | what it is for |", "|---|---|"]
    lines += [f"| [`{room}`]({_stem(room)}.md) | {rooms.summary(room)} |" for room in rooms.ROOMS]
    lines += ["", "## `equipoise`", "", "| name | where it is described |", "|---|---|"]
    for name in (*rooms.public_names("equipoise"), "audit", "compare", "data", "train"):
        place = rooms.public_place(name)
        lines.append(f"| `equipoise.{name}` | {f'[`{place}`][{place}]' if place else _MODULES[name]} |")
    yield "reference/index.md", "\n".join(lines) + "\n"
    for room in rooms.ROOMS:
        text = [f"# `{room}`", "", rooms.summary(room), ""]
        for name in rooms.own_names(room):
            text += [f"::: {room}.{name}", *_options(room), ""]
        yield f"reference/{_stem(room)}.md", "\n".join(text)


_MODULES: Final = {"data": "[`equipoise.data`](data.md)", "audit": "[Audit](../audit.md)"}


def _options(room: str) -> list[str]:
    """Return the lines that show what the optimizers inherit: their calls are those of a base that is not public."""
    if room != "equipoise.optim":
        return []
    return ["    options:", "      inherited_members: [backward, step, total]"]


def _stem(room: str) -> str:
    return room.removeprefix("equipoise.").replace(".", "-")


def _include(path: str, files: Files, config: MkDocsConfig) -> None:
    """Add a file of the repository: Markdown, notebooks and code as pages, all else as it is."""
    source = ROOT / path
    if path.endswith(".md"):
        # MkDocs takes a README for the index of its section.
        _included[path] = uri = f"repository/{re.sub(r'README.md$', 'about.md', path)}"
        text = source.read_text(encoding="utf-8")
    elif path.endswith(".ipynb"):
        _included[path] = uri = f"repository/{path}.md"
        files.append(File.generated(config, f"repository/{path}", abs_src_path=str(source)))
        text = notebooks.page(source)
    elif (language := FENCES.get(source.suffix)) or source.name == "LICENSE":
        _included[path] = uri = f"repository/{path}.md"
        code = source.read_text(encoding="utf-8")
        text = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n````{language or 'text'}\n{code}````\n"
    else:
        _included[path] = uri = f"repository/{path}"
        files.append(File.generated(config, uri, abs_src_path=str(source)))
        return
    files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV))


def _outside(page: str) -> Iterator[str]:
    """Yield the files outside ``docs/`` that a page of the repository links to."""
    if not (ROOT / page).is_file():
        return  # generated
    prose = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for found in LINK.finditer(prose):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), found[2]))
        if not target.startswith("docs/") and (ROOT / target).is_file():
            yield target


def _link(found: re.Match[str], origin: str, uri: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found[2]))
    place = target.removeprefix("docs/") if target.startswith("docs/") else _included.get(target)
    if place is None:
        return found[0]  # MkDocs names it, and `--strict` refuses it
    relative = posixpath.relpath(place, posixpath.dirname(uri) or ".")
    return f"{found[1]}{relative}{found[3] or ''}{found[4]}"


def _outside_code(markdown: str, change: Any) -> str:
    parts = CODE.split(markdown)
    return "".join(part if place % 2 else change(part) for place, part in enumerate(parts))
