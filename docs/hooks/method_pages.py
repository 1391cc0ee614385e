"""The sections of the pages on methods, made of the catalogue: summary, formula, paper, needs and options.

The table of all methods gets links to them, and to the papers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

from docstrings import markdown
from rooms import public_place

from equipoise.methods import CATALOGUE, NEEDS, Method

PAGES = {
    "gradients at the fork": "methods-at-the-fork.md",
    "updates": "methods-updates.md",
    "loss weights": "methods-loss-weights.md",
    "gradients of the shared parameters": "methods-shared-parameters.md",
}
"""Family of methods -> the page with its sections."""
MARK = re.compile(r"^(?:> .*\n\n)?<!-- methods: (.+) -->$", re.MULTILINE)
"""The place of the sections, and a note above it for readers of the Markdown, who do not see them."""
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
ROW = re.compile(r"^\| `([a-z-]+)` \|(.*)$", re.MULTILINE)


def fill(page: str) -> str:
    """Replace the mark of a page by the sections of the family that it names."""
    return MARK.sub(lambda found: "\n".join(sections(found[1])), page)


def link_rows(page: str) -> str:
    """Link every row about a method, as in the table of all, to the method's section and paper."""
    place = {method.name: f"{PAGES[method.family]}#{method.name}" for method in CATALOGUE}

    def linked(row: re.Match[str]) -> str:
        if row[1] not in place:
            return row[0]
        return f"| [`{row[1]}`]({place[row[1]]}) |{_with_links(row[2])}"

    return ROW.sub(linked, page)


def sections(family: str) -> Iterator[str]:
    """Yield the sections of a family's methods; those of one factory, as variants of one method, share its text."""
    entries = [method for method in CATALOGUE if method.family == family]
    if not entries:
        raise LookupError(
            f"Expected a family out of {sorted({method.family for method in CATALOGUE})}; found {family}."
        )
    for _, group in groupby(entries, key=lambda method: tuple(method.factories) or method.name):
        yield from _section(list(group))


def _section(methods: list[Method]) -> Iterator[str]:
    first = methods[0]
    yield f"\n### {first.label}\n"
    for method in methods:
        fixed = ", ".join(f"`{name}={value}`" for name, value in method.options.items())
        label = "" if method is first else f"**{method.label}**: "
        yield f"`{method.name}`{{ #{method.name} }}{f' ({fixed})' if fixed else ''}\n:   {label}{method.summary}\n"
    yield from _facts(first)
    for factory in first.factories:
        yield from _formula(factory, alone=len(first.factories) == 1)
    if options := {name: value for name, value in first.known_options().items() if name not in first.options}:
        yield "\n| option | default | values that `--tune-trials` tries |\n|---|---|---|"
        for name, value in options.items():
            tried = first.search.get(name, ())
            said = tried if isinstance(tried, str) else ", ".join(f"`{one}`" for one in tried)
            yield f"| `{name}` | {'' if value is inspect.Parameter.empty else f'`{value}`'} | {said} |"
        yield ""


def _facts(method: Method) -> Iterator[str]:
    if method.published:
        yield f"\n**Paper.** {_with_links(method.published)}."
    if method.needs:
        yield f"\n**Needs.** {'; '.join(NEEDS[need] for need in sorted(method.needs))}."
    yield f"\n**Preferences.** {'Kept for the whole training.' if method.takes_task_weights else 'Refused.'}\n"


def _with_links(text: str) -> str:
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _formula(factory: Callable[..., Any], *, alone: bool) -> Iterator[str]:
    """Yield what a factory's docstring says before its arguments, and a link to its place in the reference.

    Of a class that is one of several factories, the text stands in the section of the method that is this class alone.
    """
    target = factory.func if isinstance(factory, partial) else factory
    place = public_place(target.__name__) if isinstance(target, type) else None
    if alone or not place or not any(method.factories == [target] for method in CATALOGUE):
        docstring = inspect.getdoc(target) or ""
        body = re.split(r"^(?:Args|Returns|Raises|Examples?|Attributes):$", docstring, flags=re.MULTILINE)[0]
        # "Build MGDA: the shortest ..." is what a function does; the section is about the method.
        body = re.sub(r"^Build (\w)", lambda found: found[1].upper(), body)
        yield f"\n{markdown(body).strip()}\n"
    if isinstance(target, type) and place:
        yield f"Formula and arguments: [`{target.__name__}`][{place}].\n"
