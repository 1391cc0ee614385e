"""Errors for bad input, a warning about misplaced forks, and the command that installs an extra.

The command line turns these errors into one message and exit code 2.
"""

from __future__ import annotations

__all__ = ["DataError", "MisplacedForkWarning", "SettingError", "how_to_install"]


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


def how_to_install(extra: str, /) -> str:
    """Return the command that installs an extra. It runs in a clone: equipoise is not on PyPI yet.

    Example:
        >>> how_to_install("data")
        "pip install '.[data]' in a clone of equipoise"
    """
    return f"pip install '.[{extra}]' in a clone of equipoise"
