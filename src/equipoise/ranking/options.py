"""Options of models and interactions: those that a signature takes, in the kind of their defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from equipoise.errors import SettingError

__all__ = ["checked_options"]


def checked_options(
    what: str, builder: Callable[..., Any], stated: Mapping[str, Any], /, *, given: Collection[str]
) -> dict[str, Any]:
    """Return the options as the types that the builder's signature asks for.

    An option must have the type of its default. A list or one number may stand for a tuple of whole numbers. An option
    without a default, or with the default None, takes any value.

    Args:
        what: the builder in messages, such as ``"Model 'mmoe'"``.
        builder: the class or function.
        stated: the options.
        given: the parameters of the signature that are not options.

    Raises:
        SettingError: an option is not known, of another kind, or missing.
    """
    parameters = dict(inspect.signature(builder).parameters)
    known = [
        option
        for option, entry in parameters.items()
        if option not in given and entry.kind not in {entry.VAR_KEYWORD, entry.VAR_POSITIONAL}
    ]
    takes_any = any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values())
    unknown = [] if takes_any else sorted(stated.keys() - set(known))
    if unknown:
        takes = f"the options {', '.join(known)}" if known else "no options"
        raise SettingError(f"{what} takes {takes}; found {', '.join(unknown)}.")
    without_default = [option for option in known if parameters[option].default is inspect.Parameter.empty]
    if missing := [option for option in without_default if option not in stated]:
        raise SettingError(f"{what} needs the options {', '.join(missing)}, which have no default.")
    return {
        option: _of_kind(parameters[option].default, value, f"{what}, {option}") if option in known else value
        for option, value in stated.items()
    }


def _of_kind(default: object, value: object, what: str) -> object:
    if isinstance(default, tuple) and all(type(entry) is int for entry in default):
        widths = [value] if isinstance(value, int) else value
        if isinstance(widths, Sequence) and all(type(width) is int for width in widths):
            return tuple(widths)
        raise SettingError(f"{what}: expected whole numbers such as 128-64, found {value!r}.")
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}.get(type(default))
    if kinds is not None and type(value) not in kinds:
        raise SettingError(f"{what}: expected a value like {default!r}, found {value!r}.")
    return value
