"""Errors for bad input, a warning about misplaced forks, and what messages advise: a name, or an extra to install.

The command line turns these errors into one message and exit code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["DataError", "MisplacedForkWarning", "SettingError", "did_you_mean", "how_to_install"]


class SettingError(ValueError):
    """A setting cannot be used: the message says what was expected, what was found and what to do."""


class DataError(ValueError):
    """A data set cannot be loaded as asked: the message says what was expected, what was found and what to do.

    Example:
        >>> raise DataError("Expected 42 columns, found 41: fetch the file again.")
        Traceback (most recent call last):
        equipoise.errors.DataError: Expected 42 columns, found 41: fetch the file again.
    """


class MisplacedForkWarning(UserWarning):
    """A fork, or the ``shared`` of PUB or AdaTask, does not cover what the tasks share; see :func:`equipoise.check`."""


def did_you_mean(name: str, known: Iterable[str], /) -> str:
    """Return ``; did you mean 'x'?`` for a known name close to this one, else nothing.

    Example:
        >>> did_you_mean("vist", ["visit", "spend"])
        "; did you mean 'visit'?"
    """
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def how_to_install(extra: str, /) -> str:
    """Return the command that installs an extra. It runs in a clone: equipoise is not on PyPI yet.

    Example:
        >>> how_to_install("data")
        "pip install '.[data]' in a clone of equipoise"
    """
    return f"pip install '.[{extra}]' in a clone of equipoise"
