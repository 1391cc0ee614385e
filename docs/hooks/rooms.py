"""The public modules that the reference shows, and the page of each of their names."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).resolve().parents[2] / "src"

ROOMS: Final = (
    "equipoise.forks",
    "equipoise.optim",
    "equipoise.solvers",
    "equipoise.checking",
    "equipoise.monitor",
    "equipoise.loss_weighting",
    "equipoise.jacobian",
    "equipoise.methods",
    "equipoise.schema",
    "equipoise.data",
    "equipoise.ranking.models",
    "equipoise.ranking.losses",
    "equipoise.ranking.metrics",
    "equipoise.training",
    "equipoise.serving",
    "equipoise.comparison",
    "equipoise.report",
    "equipoise.settings",
    "equipoise.errors",
    "equipoise.preferences",
)
"""Modules with a page in the reference, in the order of the navigation."""


def module_file(module: str) -> Path:
    """Return the file of a module."""
    place = SOURCE.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@cache
def public_names(module: str) -> tuple[str, ...]:
    """Return ``__all__`` of a module, without importing it."""
    for node in ast.parse(module_file(module).read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return tuple(ast.literal_eval(value))
    raise LookupError(f"{module} has no __all__.")


@cache
def summary(module: str) -> str:
    """Return the first sentence or paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module_file(module).read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n", maxsplit=1)[0].split())


@cache
def own_names(module: str) -> tuple[str, ...]:
    """Return the names that a room's page documents: each on the page of the first room that has it.

    Those that ``import equipoise`` has come first.
    """
    before = {name for room in ROOMS[: ROOMS.index(module)] for name in public_names(room)}
    own = [name for name in public_names(module) if name not in before]
    return tuple(sorted(own, key=lambda name: name not in public_names("equipoise")))


def public_place(name: str) -> str | None:
    """Return the full name under which the reference documents a class, function or constant, else None.

    A method or attribute leads to its class.
    """
    parts = name.split(".")
    for room in ROOMS:
        for part in parts:
            if part in own_names(room) and (part == parts[0] or name.startswith("equipoise.")):
                return f"{room}.{part}"
    return None
