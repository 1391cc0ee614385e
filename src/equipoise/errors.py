"""Errors that bad input ends in, which the command line turns into one message and exit code 2; a warning; and the
words that say how to install.
"""

from __future__ import annotations

__all__ = ["DataError", "MisplacedForkWarning", "SettingError", "how_to_install"]


class SettingError(ValueError):
    """A setting cannot be used: the message says what was expected, what was found and what to do."""


class DataError(ValueError):
    """A data set cannot be had as asked: the message says what was expected, what was found and what to do.

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
