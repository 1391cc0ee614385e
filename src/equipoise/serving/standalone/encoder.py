"""Turn raw rows into the ids and numbers that an exported ranker takes, by its encoding.json.

Needs Python 3.11 and nothing else. `equipoise export` copies this file beside the program:

    encoder = Encoder.load("encoding.json")
    ids, numbers = encoder.encode([{"zip": "rural", "age": 41}, {"zip": None, "age": "17"}])

`ids` goes into an int64 matrix, `numbers` into a float32 one. They equal those of the training for every kind of
feature; a value of a wrong type is refused, never guessed.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

__all__ = ["Encoder", "EncodingError"]

_VERSION: Final = 1
_PADDING: Final = -1
_JOINT: Final = "\x1f"
_EXACT: Final = 2.0**53
_LARGEST: Final = 3.4028235677973366e38  # from here on, float32 rounds to infinity
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_ISO: Final = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?(?:(Z)|([+-])(\d{2}):?(\d{2})?)?)?",
    re.ASCII,
)
_PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999
_EPOCH: Final = datetime.datetime(1970, 1, 1)

_Row = Mapping[str, Any]
_OfRow = Callable[[_Row], list[Any]]


class EncodingError(ValueError):
    """A row cannot be encoded: the message names the row, the column, and what was expected and found."""


class Encoder:
    """The encoders of all features.

    Args:
        encoding: the content of `encoding.json`.

    Attributes:
        columns: the raw columns that each row has to state; None stands for a missing value.
        widths: the number of columns of ids and of numbers.

    Raises:
        EncodingError: the encoding is of another version, or holds a kind of feature that this file does not know.
    """

    def __init__(self, encoding: Mapping[str, Any], /) -> None:
        if encoding.get("version") != _VERSION:
            raise EncodingError(
                f"Expected an encoding of version {_VERSION}, found {encoding.get('version')!r}: take the encoder.py "
                "that was exported with it."
            )
        tables = {name: _table(table) for name, table in encoding["tables"].items()}
        self._of_ids: list[_OfRow] = []
        self._of_numbers: list[_OfRow] = []
        columns: dict[str, None] = {}
        widths = [0, 0]
        for feature in encoding["features"]:
            if (build := _KINDS.get(feature["kind"])) is None:
                raise EncodingError(f"Feature {feature['name']!r} is of the unknown kind {feature['kind']!r}.")
            numbers = feature["kind"] in {"number", "vector"}
            (self._of_numbers if numbers else self._of_ids).append(_named(feature, build(feature, tables)))
            columns |= dict.fromkeys(_columns(feature))
            widths[numbers] += _width(feature)
        self.columns = tuple(columns)
        self.widths = (widths[0], widths[1])

    @classmethod
    def load(cls, path: Any, /) -> Encoder:
        """Return the encoder of an `encoding.json`."""
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - any path
            return cls(json.load(file))

    def encode(self, rows: Sequence[_Row], /) -> tuple[list[list[int]], list[list[float]]]:
        """Return the ids and the numbers of each row.

        Raises:
            EncodingError: a row lacks a column, or holds a value of a wrong type or out of range.
        """
        ids: list[list[int]] = []
        numbers: list[list[float]] = []
        for place, row in enumerate(rows):
            try:
                ids.append([value for encode in self._of_ids for value in encode(row)])
                numbers.append([value for encode in self._of_numbers for value in encode(row)])
            except EncodingError as error:
                raise EncodingError(f"Row {place}: {error}") from None
            except (KeyError, TypeError, AttributeError):
                self._explain(row, place)
                raise
        return ids, numbers

    def _explain(self, row: object, place: int) -> None:
        if not isinstance(row, Mapping):
            raise EncodingError(f"Row {place}: expected names and values, found {_shown(row)}.") from None
        if absent := [column for column in self.columns if column not in row]:
            raise EncodingError(
                f"Row {place}: expected the columns {', '.join(self.columns)}; {', '.join(absent)} "
                f"{'is' if len(absent) == 1 else 'are'} not there (null stands for a missing value)."
            ) from None


def _named(feature: Mapping[str, Any], encode: _OfRow) -> _OfRow:
    """Put the feature's name and its column before the message of an error."""
    where = f"feature {feature['name']!r}, column {' and '.join(map(repr, _columns(feature)))}"

    def named(row: _Row) -> list[Any]:
        try:
            return encode(row)
        except EncodingError as error:
            raise EncodingError(f"{where}: {error}") from None

    return named


def _columns(feature: Mapping[str, Any]) -> list[str]:
    return list(feature["of"]) if feature["kind"] == "cross" else [feature["column"]]


def _width(feature: Mapping[str, Any]) -> int:
    if feature["kind"] == "categories":
        return int(feature["length"])
    if feature["kind"] == "vector":
        return int(feature["width"])
    return 2 if feature.get("indicator") else 1


def _category(feature: Mapping[str, Any], tables: Mapping[str, Callable[[str], int]]) -> _OfRow:
    column, table = feature["column"], tables[feature["table"]]

    def encode(row: _Row) -> list[int]:
        text = _text(row[column])
        return [0 if text is None else table(text)]

    return encode


def _categories(feature: Mapping[str, Any], tables: Mapping[str, Callable[[str], int]]) -> _OfRow:
    column, table = feature["column"], tables[feature["table"]]
    length, separator = feature["length"], feature["separator"]

    def encode(row: _Row) -> list[int]:
        value = row[column]
        if isinstance(value, str):
            value = value.split(separator)
        items = value if isinstance(value, list | tuple) else [value]
        ids = [table(text) for item in items if (text := _text(item)) is not None][-length:]
        return ids + [_PADDING] * (length - len(ids))

    return encode


def _cross(feature: Mapping[str, Any], _: object) -> _OfRow:
    columns, rows = feature["of"], feature["rows"]

    def encode(row: _Row) -> list[int]:
        texts = [text for column in columns if (text := _text(row[column])) is not None]
        return [_hashed(_JOINT.join(texts), rows) if len(texts) == len(columns) else 0]

    return encode


def _number_feature(feature: Mapping[str, Any], _: object) -> _OfRow:
    column, mean, deviation = feature["column"], feature["mean"], feature["deviation"]
    logarithm, indicator = feature["transform"] == "log1p", feature["indicator"]

    def encode(row: _Row) -> list[float]:
        number = _number(row[column])
        if number is None:
            return [0.0, 1.0] if indicator else [0.0]
        if logarithm:
            number = math.copysign(math.log1p(abs(number)), number)
        scaled = _as_float32((number - mean) / deviation, row[column])
        return [scaled, 0.0] if indicator else [scaled]

    return encode


def _bins(feature: Mapping[str, Any], _: object) -> _OfRow:
    column, edges = feature["column"], feature["edges"]

    def encode(row: _Row) -> list[int]:
        number = _number(row[column])
        return [0 if number is None else bisect_right(edges, number) + 1]

    return encode


def _vector(feature: Mapping[str, Any], _: object) -> _OfRow:
    column, width, separator = feature["column"], feature["width"], feature["separator"]

    def encode(row: _Row) -> list[float]:
        value = row[column]
        if isinstance(value, str) and separator is not None:
            value = value.split(separator) if value else None
        if value is None or (isinstance(value, list | tuple) and not value):
            return [0.0] * width
        if not isinstance(value, list | tuple):
            raise _expected("a list of numbers", value)
        if len(value) != width:
            raise _expected(f"a vector of {width} numbers", value)
        found = []
        for item in value:
            if (number := _number(item)) is None:
                raise _expected("a vector without missing numbers", value)
            found.append(_as_float32(number, item))
        return found

    return encode


def _time(feature: Mapping[str, Any], _: object) -> _OfRow:
    column, unit, form = feature["column"], _PER_SECOND[feature["unit"]], feature["format"]
    part: Callable[[datetime.datetime], int] = {
        "hour": lambda time: time.hour + 1,
        "weekday": lambda time: time.isoweekday(),
        "day": lambda time: time.day,
        "month": lambda time: time.month,
    }[feature["part"]]

    def encode(row: _Row) -> list[int]:
        seconds = _seconds(row[column], unit, form)
        return [0 if seconds is None else part(_EPOCH + datetime.timedelta(seconds=seconds))]

    return encode


_KINDS: Final[Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], _OfRow]]] = {
    "category": _category,
    "categories": _categories,
    "cross": _cross,
    "number": _number_feature,
    "bins": _bins,
    "vector": _vector,
    "time": _time,
}


def _table(table: Mapping[str, Any]) -> Callable[[str], int]:
    """Return the function from a text to its id."""
    if table["kind"] == "hash":
        rows = table["rows"]
        return lambda text: _hashed(text, rows)
    if table["kind"] != "vocabulary":
        raise EncodingError(f"Expected a table of the kind vocabulary or hash, found {table['kind']!r}.")
    ids = {text: place for place, text in enumerate(table["values"], start=1)}
    return lambda text: ids.get(text, 0)


def _hashed(text: str, rows: int) -> int:
    return 1 + zlib.crc32(text.encode()) % (rows - 1)


def _text(value: Any) -> str | None:
    """Return the text of a value, the same for 3, 3.0 and "3"; None if it is missing."""
    if isinstance(value, str):
        if not value.isascii():
            _check_unicode(value)
        return value or None
    if value is None or isinstance(value, float):
        return None if value is None else _text_of_float(value)
    if isinstance(value, int):
        return str(value).lower()  # true and false, for booleans
    return _text_of_other(value)


def _text_of_other(value: Any) -> str:
    if isinstance(value, Decimal):
        plain = f"{value:f}"
        return re.sub(r"\.?0+$", "", plain) if "." in plain else plain
    if isinstance(value, datetime.datetime):
        utc = value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
        return utc.isoformat(" ", "microseconds" if utc.microsecond else "seconds")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, datetime.time):
        return value.isoformat()
    raise _expected("text, a number, true, false or null", value)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _expected("text in Unicode", text) from None


def _text_of_float(value: float) -> str | None:
    if math.isnan(value):
        return None
    if abs(value) > _EXACT:
        raise _expected("an id that a float holds exactly, up to 2^53", value)
    return str(int(value)) if value.is_integer() else repr(value)


def _number(value: Any) -> float | None:
    """Return a value as a number; None if it is missing."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        if value.lower() in {"nan", "+nan", "-nan"}:
            return None
        if not _NUMBER.fullmatch(value):
            raise _expected("a finite number", value)
    elif not isinstance(value, int | float | Decimal):
        raise _expected("a number", value)
    try:
        number = float(value)
    except OverflowError:
        raise _expected("a finite number", value) from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise _expected("a finite number", value)
    return number


def _as_float32(number: float, value: Any) -> float:
    if not abs(number) < _LARGEST:
        raise _expected("a number that float32 holds once scaled", value)
    return number


def _seconds(value: Any, unit: int, form: str | None) -> int | None:
    """Return a time as whole seconds since 1970-01-01 UTC, rounded down; None if it is missing."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) or (whole and form is not None):
        seconds = _seconds_of_text(str(value), form)
    elif isinstance(value, datetime.date):
        seconds = _seconds_since_epoch(value)
    elif whole or isinstance(value, float):
        if isinstance(value, float) and math.isinf(value):
            raise _expected("a time in the years 1 to 9999", value)
        seconds = value // unit if isinstance(value, int) else math.floor(value / unit)
    else:
        raise _expected("a time: a date, a number or text", value)
    if not _FIRST <= seconds <= _LAST:
        raise _expected("a time in the years 1 to 9999", value)
    return seconds


def _seconds_since_epoch(value: datetime.date) -> int:
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return (value - _EPOCH) // datetime.timedelta(seconds=1)


def _seconds_of_text(text: str, form: str | None) -> int:
    expected = f"a time in the format {form or 'ISO 8601'!r}"
    if form is not None:
        try:
            return _seconds_since_epoch(datetime.datetime.strptime(text, form))
        except ValueError:
            raise _expected(expected, text) from None
    found = _ISO.fullmatch(text)
    if found is None:
        raise _expected(expected, text)
    year, month, day, hour, minute, second, hours, minutes = (int(found[i] or 0) for i in (1, 2, 3, 4, 5, 6, 9, 10))
    try:
        time = datetime.datetime(year, month, day, hour, minute, second)
    except ValueError:
        raise _expected(expected, text) from None
    offset = (hours * 3600 + minutes * 60) * (-1 if found[8] == "-" else 1)
    return _seconds_since_epoch(time) - offset


def _expected(what: str, found: object) -> EncodingError:
    return EncodingError(f"expected {what}, found {_shown(found)}.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
