"""The parameters of a method's factories, some of which are the method's options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["keyword_options", "parameters_of"]

_NOT_FROM_TEXT: Final = {"shared", "tasks", "process_group", "data_parallel", "task_weights"}
"""Parameters that no word of the command line can spell."""


def parameters_of(factory: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """Return a factory's parameters by name."""
    return inspect.signature(factory).parameters


def keyword_options(factory: Callable[..., object]) -> dict[str, Any]:
    """Return a factory's keyword-only parameters whose values one word can spell, with their defaults."""
    return {
        entry.name: entry.default
        for entry in parameters_of(factory).values()
        if entry.kind is inspect.Parameter.KEYWORD_ONLY and entry.name not in _NOT_FROM_TEXT
    }
