"""Command-line options, one for each setting that a command takes."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from equipoise.errors import SettingError
from equipoise.scalars import parse_scalar
from equipoise.settings import Command, Settings, about, parse_pairs, split_methods

__all__ = ["Words", "stated_settings", "takes_settings"]

Words = dict[str, Any]
"""What the command line says of each setting, by its name, as typer has read it."""


def takes_settings(command: Command, /) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting that it takes.

    The command receives the stated words as its first argument, see :func:`stated_settings`. Its own options follow.
    """

    def give(function: Callable[..., None]) -> Callable[..., None]:
        names = [name for name in Settings.model_fields if command in about(name).commands]
        hints = get_type_hints(function, include_extras=True)
        own = [
            entry.replace(annotation=hints[entry.name])
            for entry in list(inspect.signature(function).parameters.values())[1:]
        ]

        @functools.wraps(function)
        def run(**given: Any) -> None:
            stated = {name: given.pop(name) for name in names}
            stated = {name: value for name, value in stated.items() if value is not None and value is not False}
            function(stated, **given)

        parameters = [*map(_parameter, names), *own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {entry.name: entry.annotation for entry in parameters}
        return run

    return give


def stated_settings(words: Words, /) -> dict[str, Any]:
    """Return the settings that the words of the command line state.

    Raises:
        SettingError: a word has another form than its setting takes.
    """
    return {name: _value(name, value) for name, value in words.items()}


def _parameter(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    option = about(name).option or f"--{name.replace('_', '-')}"
    kind = _option_type(field)
    default: Any = False if kind is bool else None
    annotation: Any = kind if kind is bool else kind | None
    shown = typer.Option(option, metavar=about(name).metavar, help=_help(field), show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, shown]
    )


def _option_type(field: FieldInfo) -> Any:
    """Return the type that typer reads: a list of words for a mapping, one word with commas for a list."""
    kind = _without(field.annotation)  # of a union, what a command line can say
    if get_origin(kind) is dict:
        return list[str]
    return str if get_origin(kind) is list else kind


def _without(kind: Any) -> Any:
    """Return a type without its checks and without None."""
    if get_origin(kind) is Annotated:
        return _without(get_args(kind)[0])
    if get_origin(kind) in {Union, types.UnionType}:
        return _without(next(part for part in get_args(kind) if part is not type(None)))
    return kind


def _help(field: FieldInfo) -> str:
    words = field.description or ""
    default = field.get_default(call_default_factory=True, validated_data={})
    if default in (None, False, {}) or "Default" in words:
        return words
    if isinstance(default, list):
        default = ",".join(f"{entry:g}" if isinstance(entry, float) else str(entry) for entry in default)
    elif isinstance(default, float):
        default = f"{default:g}"
    kinds = _without(field.annotation)
    choices = f" One of {', '.join(get_args(kinds))}." if get_origin(kinds) is Literal else ""
    return f"{words}{choices} Default: {default}."


def _value(name: str, value: Any) -> Any:
    """Return a setting's value from the words of the command line."""
    option = about(name).option or f"--{name.replace('_', '-')}"
    kind = _without(Settings.model_fields[name].annotation)
    if get_origin(kind) is dict:
        return parse_pairs(value, option)
    if get_origin(kind) is list and get_args(kind)[0] is str:
        return split_methods(value)
    if get_origin(kind) is list:
        found = [parse_scalar(word) for word in value.split(",")]
        if not all(isinstance(entry, int | float) for entry in found):
            raise SettingError(f"{option}: expected numbers with commas between, found {value!r}.")
        return found
    return value
