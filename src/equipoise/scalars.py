"""Values as words of the command line and of names with options spell them."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["Scalar", "parse_scalar", "parse_value"]

Scalar = bool | int | float | str

_WIDTHS: Final = re.compile(r"\d+(-\d+)+")


def parse_scalar(text: str, /) -> Scalar:
    """Convert a word to the number or truth value that it spells, else return it as it is.

    Example:
        >>> parse_scalar("0.3"), parse_scalar("10"), parse_scalar("true"), parse_scalar("gram")
        (0.3, 10, True, 'gram')
    """
    if text in {"true", "false"}:
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def parse_value(text: str, /) -> Scalar | list[int]:
    """Convert a word as :func:`parse_scalar` does, or ``128-64`` to a list of numbers.

    Example:
        >>> parse_value("128-64"), parse_value("128")
        ([128, 64], 128)
    """
    return [int(number) for number in text.split("-")] if _WIDTHS.fullmatch(text) else parse_scalar(text)
