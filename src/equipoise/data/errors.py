"""The one error for bad input to a data set; the command line shows its message and exits with code 2."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """A data set cannot be had as asked: the message says what was expected, what was found and what to do.

    Example:
        >>> raise DataError("Expected 42 columns, found 41: fetch the file again.")
        Traceback (most recent call last):
        equipoise.data.errors.DataError: Expected 42 columns, found 41: fetch the file again.
    """
