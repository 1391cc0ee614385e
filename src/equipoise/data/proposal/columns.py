"""Facts about the columns of a sample of rows, from which their roles are guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import polars as pl

__all__ = ["Column", "TimeForm", "Tokens", "look_at", "words_of"]

Nature = Literal["constant", "binary", "whole", "real", "text", "list", "time"]
"""The kind of values: all the same; 0 and 1; whole numbers; numbers; text; lists; or points in time."""

_SEPARATORS: Final = ("|", ";", ",", " ")
_UNITS: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_FIRST, _LAST = datetime(2000, 1, 1, tzinfo=UTC).timestamp(), datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_TIME_NAME: Final = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|day|dt|at)($|_)", re.IGNORECASE)
_ISO: Final = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?$"
_DAYS: Final = ("%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y")
_CLOCKS: Final = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p")
_YES: Final = {"yes": "no", "y": "n", "true": "false", "t": "f"}
_FEW_ROWS: Final = 1_000  # enough to tell the form of text


@dataclass(frozen=True)
class TimeForm:
    """The form in which a column writes points in time: whole numbers since 1970 in a unit, or text.

    Attributes:
        format: of text that is not ISO 8601.
        whole_days: whether they tell the day alone.
    """

    unit: str = ""
    format: str = ""
    whole_days: bool = False


@dataclass(frozen=True)
class Tokens:
    """The parts of lists, or of text with a separator.

    Attributes:
        separator: between the parts of a text; empty for lists.
        most: the largest number of parts in a row.
        same_count: whether all rows have as many.
        numbers: whether all parts are numbers with a fraction, as in a vector.
        distinct: the parts, as text.
    """

    separator: str
    most: int
    same_count: bool
    numbers: bool
    distinct: frozenset[str]


@dataclass(frozen=True)
class Column:
    """Facts about one column.

    Attributes:
        missing: the share of rows without a value.
        distinct: the number of different values.
        low, high: the smallest and largest number; NaN for other columns.
        skewed: whether numbers from 0 up span such a range that a logarithm suits them.
        time: the form of points in time, if the column has such.
        tokens: the parts of lists or separated text, if the column has such.
        yes: the text that stands for 1 in a binary column of text, such as "yes" beside "no".
        decimal_comma: whether nearly all texts are numbers, most of them with a comma in place of the point.
    """

    name: str
    nature: Nature
    missing: float
    distinct: int
    rows: int
    low: float = float("nan")
    high: float = float("nan")
    skewed: bool = False
    time: TimeForm | None = None
    tokens: Tokens | None = None
    yes: str = ""
    decimal_comma: bool = False


def words_of(name: str, /) -> str:
    """Return a name with underscores between its words.

    Example:
        >>> words_of("isClick"), words_of("video.ID"), words_of("user_id")
        ('is_Click', 'video_ID', 'user_id')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^0-9A-Za-z_]+", "_", name)


def look_at(sample: pl.DataFrame, /) -> Iterator[Column]:
    """Yield the facts about each column of a sample.

    Example:
        >>> [found.nature for found in look_at(pl.DataFrame({"click": [0, 1, None], "zip": ["a", "b", "a"]}))]
        ['binary', 'text']
    """
    for name in sample.columns:
        yield _column(sample[name])


def _column(values: pl.Series) -> Column:
    if values.dtype.is_float():
        values = values.fill_nan(None)
    there = values.drop_nulls()
    rows, missing = len(values), values.null_count() / max(1, len(values))
    if isinstance(values.dtype, pl.List | pl.Array):
        tokens = _tokens_of(there.cast(pl.List(there.dtype.inner)), "")  # type: ignore[attr-defined]
        return Column(values.name, "list", missing, len(tokens.distinct), rows, tokens=tokens)
    distinct = there.n_unique()
    if distinct <= 1:
        return Column(values.name, "constant", missing, distinct, rows)
    if values.dtype == pl.Boolean:
        return Column(values.name, "binary", missing, distinct, rows, 0.0, 1.0)
    if values.dtype.is_temporal():
        return Column(values.name, "time", missing, distinct, rows, time=TimeForm(whole_days=values.dtype == pl.Date))
    if values.dtype.is_numeric():
        return _number(there, missing, distinct, rows)
    return _text(there.cast(pl.String), missing, distinct, rows)


def _number(there: pl.Series, missing: float, distinct: int, rows: int) -> Column:
    numbers = there.cast(pl.Float64)
    low, high = _float(numbers.min()), _float(numbers.max())
    whole = bool((numbers == numbers.round()).all())
    time = _time_of_numbers(there, low, high) if whole else None
    if time is not None:
        return Column(there.name, "time", missing, distinct, rows, low, high, time=time)
    if whole and {low, high} <= {0.0, 1.0}:
        return Column(there.name, "binary", missing, distinct, rows, low, high)
    median = _float(numbers.filter(numbers > 0).median() or 0.0)
    skewed = low >= 0 and median > 0 and high > 20 * median
    return Column(there.name, "whole" if whole else "real", missing, distinct, rows, low, high, skewed)


def _time_of_numbers(there: pl.Series, low: float, high: float) -> TimeForm | None:
    """Return the form of whole numbers that are points in time, judged by their size and their column's name."""
    if not _TIME_NAME.search(words_of(there.name)):
        return None
    for unit, per_second in _UNITS.items():
        if low >= _FIRST * per_second and high <= _LAST * per_second:
            return TimeForm(unit=unit)
    if low >= 20_000_101 and high <= 21_000_101:
        days = there.cast(pl.String).str.to_date("%Y%m%d", strict=False)
        return TimeForm(format="%Y%m%d", whole_days=True) if days.null_count() == 0 else None
    return None


def _text(there: pl.Series, missing: float, distinct: int, rows: int) -> Column:
    if distinct == 2 and (yes := _yes_of(there.unique().to_list())):
        return Column(there.name, "binary", missing, distinct, rows, 0.0, 1.0, yes=yes)
    few = there.head(_FEW_ROWS)
    time = _time_of_text(few)
    if time is not None:
        return Column(there.name, "time", missing, distinct, rows, time=time)
    if _share(few, r"^-?\d+,\d+$") > 0.5 and _share(few, r"^-?\d+(,\d+)?$") > 0.9:
        return Column(there.name, "text", missing, distinct, rows, decimal_comma=True)
    for separator in _SEPARATORS:
        if few.str.contains(separator, literal=True).any():
            tokens = _tokens_of(there.str.split(separator), separator)
            # Words of one value, such as "Womens E-Mail", are no list: a list repeats its parts in other companies.
            if tokens.most > 1 and len(tokens.distinct) * 2 <= distinct:
                return Column(there.name, "list", missing, len(tokens.distinct), rows, tokens=tokens)
            if tokens.numbers and tokens.same_count and tokens.most > 1:
                return Column(there.name, "list", missing, len(tokens.distinct), rows, tokens=tokens)
    return Column(there.name, "text", missing, distinct, rows)


def _share(texts: pl.Series, pattern: str) -> float:
    """Return the share of texts that match."""
    return _float(texts.str.contains(pattern).mean() or 0.0)


def _yes_of(values: list[str]) -> str:
    """Return the one of two texts that says yes, if the other says no; empty otherwise."""
    words = {value.strip().lower(): value for value in values}
    return next((words[yes] for yes, no in _YES.items() if words.keys() == {yes, no}), "")


def _time_of_text(few: pl.Series) -> TimeForm | None:
    """Return the form of text that holds points in time: ISO 8601, or the first format that reads all of it."""
    if few.str.contains(_ISO).all():
        return TimeForm(whole_days=not few.str.contains(":", literal=True).any())
    for day in _DAYS:
        for clock in _CLOCKS:
            if few.str.to_datetime(day + clock, strict=False).null_count() == 0:
                return TimeForm(format=day + clock, whole_days=not clock)
    return None


def _tokens_of(lists: pl.Series, separator: str) -> Tokens:
    counts = lists.list.len()
    parts = lists.explode().drop_nulls()
    text = parts.cast(pl.String).str.strip_chars()
    text = text.filter(text != "")
    numbers = text.cast(pl.Float64, strict=False)
    fractions = bool(numbers.null_count() == 0 and len(numbers) and (numbers != numbers.round()).any())
    return Tokens(
        separator, int(_float(counts.max() or 0)), counts.n_unique() == 1, fractions, frozenset(text.unique().to_list())
    )


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
