"""Values as words of the command line and of names with options spell them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

__all__ = ["Scalar", "Value", "parse_scalar", "parse_value", "spell_value"]

Scalar = bool | int | float | str

Value = Scalar | list[int] | list[float]

_LIST: Final = re.compile(r"(\d+\.?\d*|\.\d+)(-(\d+\.?\d*|\.\d+))+")


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


def parse_value(text: str, /) -> Value:
    """Convert a word as :func:`parse_scalar` does, or numbers with hyphens between them to a list.

    Example:
        >>> parse_value("128-64"), parse_value("128"), parse_value("1-0.5-3")
        ([128, 64], 128, [1.0, 0.5, 3.0])
    """
    if not _LIST.fullmatch(text):
        return parse_scalar(text)
    parts = text.split("-")
    return [float(part) for part in parts] if "." in text else [int(part) for part in parts]


def spell_value(value: object, /) -> str:
    """Return a word that :func:`parse_value` converts to an equal value.

    Example:
        >>> spell_value([1.0, 0.5, 1e-05]), spell_value([128, 64]), spell_value(1e-05), spell_value(True)
        ('1-0.5-0.00001', '128-64', '1e-05', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, list | tuple):
        return str(value)
    return "-".join(format(Decimal(repr(part)), "f").removesuffix(".0") for part in value)
