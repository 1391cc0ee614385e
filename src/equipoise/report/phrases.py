"""Small pieces of the report's sentences."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.report.cells import p_value

__all__ = ["counted", "equals", "first_listed", "is_or_are", "listed"]


def counted(count: int, noun: str) -> str:
    """Return a number and its noun, in the plural where needed.

    Example:
        >>> counted(1, "seed"), counted(2, "seed")
        ('1 seed', '2 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def is_or_are(names: Sequence[str]) -> str:
    """Return "is" or "are", by the number of names."""
    return "is" if len(names) == 1 else "are"


def listed(items: Sequence[str]) -> str:
    """Join items by commas, with "and" before the last; by semicolons where an item has a comma of its own.

    Example:
        >>> listed(["click", "like", "buy"])
        'click, like and buy'
        >>> listed(["the funnel, drifting", "two digits", "the funnel, aligned"])
        'the funnel, drifting; two digits; and the funnel, aligned'
    """
    if any(", " in item for item in items):
        return items[0] if len(items) == 1 else f"{'; '.join(items[:-1])}; and {items[-1]}"
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def first_listed(items: Sequence[str], *, most: int = 5) -> str:
    """Join items as :func:`listed` does, but no more than so many; the others are counted.

    Example:
        >>> first_listed(["click", "like", "buy", "share"], most=3)
        'click, like and 2 more'
    """
    return listed(items if len(items) <= most else [*items[: most - 1], f"{len(items) - most + 1} more"])


def equals(p: float | None) -> str:
    """Return the text after the letter p: its value, or a bound if it is very small.

    Example:
        >>> equals(0.03), equals(0.00001)
        ('= 0.030', '< 0.001')
    """
    said = p_value(p)
    return said if said.startswith("<") else f"= {said}"
