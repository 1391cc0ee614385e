"""Tables of text and the format of their numbers, the same for HTML, Markdown and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from equipoise.report.statistics import Interval, PairedComparison

__all__ = [
    "NONE",
    "PERCENT",
    "Cell",
    "Column",
    "Row",
    "Table",
    "between",
    "in_unit",
    "memory_text",
    "number",
    "p_value",
    "percent",
    "signed",
    "with_columns",
]

NONE = "–"
PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Cell:
    """One value of a table: a text, a smaller second line, an explanation, and how it looks."""

    text: str
    below: str = ""
    hint: str = ""
    tone: Literal["", "best", "better", "worse", "warn"] = ""
    background: str = ""


@dataclass(frozen=True)
class Column:
    """A heading, what it means, and whether its values are numbers (then they are set right)."""

    title: str
    hint: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """The cells of one row; ``reference`` and ``aside`` rows look different."""

    cells: Sequence[Cell]
    kind: Literal["", "reference", "aside"] = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows of one table."""

    columns: Sequence[Column]
    rows: Sequence[Row] = field(default_factory=list)


def with_columns(table: Table, after: str, columns: Sequence[Column], cells: Sequence[Sequence[Cell]]) -> Table:
    """Return a table with more columns behind the one of that title; ``cells`` of each row in their order."""
    place = [column.title for column in table.columns].index(after) + 1
    return Table(
        [*table.columns[:place], *columns, *table.columns[place:]],
        [
            replace(row, cells=[*row.cells[:place], *more, *row.cells[place:]])
            for row, more in zip(table.rows, cells, strict=True)
        ],
    )


def number(value: float | None, digits: int) -> str:
    """Format a number with a true minus sign, or a dash for none."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def in_unit(value: float | None) -> str:
    """Format a number in a unit of its own with four significant digits.

    Example:
        >>> in_unit(1234.567), in_unit(0.0123456), in_unit(None)
        ('1,235', '0.01235', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """Format a difference with its sign; one that rounds to zero has none.

    Example:
        >>> signed(-1.234, 2), signed(0.5, 1), signed(-0.001, 2)
        ('−1.23', '+0.5', '0.00')
    """
    text = number(value, digits)
    if value is None or not math.isfinite(value) or float(f"{value:.{digits}f}") == 0:
        return text.lstrip("−")
    return text if value < 0 else f"+{text}"


def percent(value: float | None, digits: int) -> str:
    """Format a relative change in per cent with its sign; the space before "%" does not break.

    Example:
        >>> percent(2.5, 1)
        '+2.5\\xa0%'
    """
    return f"{signed(value, digits)}{PERCENT}"


def p_value(p: float | None) -> str:
    """Format a p value with three digits at most.

    Example:
        >>> p_value(0.0304), p_value(0.00002), p_value(None)
        ('0.030', '< 0.001', '–')
    """
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def between(found: PairedComparison | Interval, digits: int, unit: str = "") -> str:
    """Format an interval; nothing where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"{signed(found.low, digits)} to {signed(found.high, digits)}{unit}"


def memory_text(amount: float | None) -> str:
    """Format a number of bytes."""
    if amount is None:
        return NONE
    return f"{amount / 1e9:.2f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"
