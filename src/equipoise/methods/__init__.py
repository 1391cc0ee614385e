"""The methods that can be trained and compared, by name."""

from __future__ import annotations

import dataclasses
from typing import Final

from equipoise.methods.catalogue import CATALOGUE
from equipoise.methods.method import NEEDS, Method, MethodError
from equipoise.registry import Registry

__all__ = ["CATALOGUE", "METHODS", "NEEDS", "Method", "MethodError", "methods_table", "parse_method", "register"]


def _named(name: str, found: object) -> Method:
    """Return the method, renamed to the name it was looked up by."""
    if not isinstance(found, Method):
        raise TypeError(f"expected an equipoise.methods.Method, found {type(found).__name__}.")
    return found if found.name == name else dataclasses.replace(found, name=name)


METHODS: Final[Registry[Method]] = Registry(
    "method", "equipoise.methods", own={method.name: method for method in CATALOGUE}, adapt=_named, error=MethodError
)
"""Every method under its name: those of equipoise, those of installed packages, and those of :func:`register`."""


def register(method: Method, /, *, replace: bool = False) -> None:
    """Add a method to every command, comparison and report of this process and of its worker processes.

    Other packages add theirs by an entry point in the group ``equipoise.methods``. An import path
    (``package.module:attribute``) may stand wherever a method is named.

    Args:
        replace: replace a method registered before under this name.

    Raises:
        MethodError: the name is taken, or has another form.

    Example:
        >>> from equipoise import MultiBalance
        >>> register(Method("slow-balance", fork=MultiBalance, options={"gamma": 0.001}))
        >>> parse_method("slow-balance:beta=0.3").options
        {'gamma': 0.001, 'beta': 0.3}
        >>> METHODS.restore({})  # forget what this process has registered
    """
    METHODS.register(method.name, method, replace=replace)


def parse_method(text: str, /) -> Method:
    """Return a method by its name or import path, with options behind a colon.

    Raises:
        MethodError: there is no such method or option, an option's value is refused, or what another package provides
            cannot be imported.

    Example:
        >>> parse_method("multibalance:beta=0.1,direction=gram").options
        {'beta': 0.1, 'direction': 'gram'}
        >>> parse_method("pcgard")
        Traceback (most recent call last):
        equipoise.methods.method.MethodError: Expected a method out of ...; found 'pcgard'; did you mean 'pcgrad'?
    """
    name, options = METHODS.parse(text)
    return METHODS[name].with_options(**options)


def methods_table() -> str:
    """Return a table of the methods of equipoise in Markdown, for ``docs/methods.md``; the main option is bold.

    Example:
        >>> methods_table().splitlines()[0]
        '| name | what it does | paper | options |'
    """
    lines = ["| name | what it does | paper | options |", "|---|---|---|---|"]
    for method in CATALOGUE:
        marks = {name: "**" if name in method.search else "" for name in method.open_options()}
        options = ", ".join(f"{mark}`{name}`{mark}" for name, mark in marks.items())
        lines.append(f"| `{method.name}` | {method.summary} | {method.published} | {options} |")
    return "\n".join(lines) + "\n"
