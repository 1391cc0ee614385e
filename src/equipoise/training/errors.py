"""The one error that a wrong setting ends in; the command line turns it into one message and exit code 2."""

from __future__ import annotations

__all__ = ["SettingError"]


class SettingError(ValueError):
    """A setting cannot be used: the message says what was expected, what was found and what to do."""
