"""The encoding once more in plain Python, value by value in float64, from its description in docs/own-data.md alone."""

import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?(?:(Z)|([+-])(\d\d):?(\d\d)?)?)?", re.ASCII
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class RefusedValue(Exception):  # noqa: N818
    """The value cannot be encoded."""


def encode_row(encoding: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Return the ids and the values of one raw row."""
    ids: list[int] = []
    values: list[float] = []
    for feature in encoding["features"]:
        match feature["kind"]:
            case "category":
                ids.append(id_in(encoding["tables"][feature["table"]], text_of(row[feature["column"]])))
            case "categories":
                table = encoding["tables"][feature["table"]]
                texts = items_of(row[feature["column"]], feature["separator"])[-feature["length"] :]
                found = [id_in(table, text) for text in texts]
                ids += found + [-1] * (feature["length"] - len(found))
            case "cross":
                texts = [text_of(row[column]) for column in feature["of"]]
                joined = None if None in texts else "\x1f".join(text for text in texts if text is not None)
                ids.append(hash_of(joined, feature["rows"]))
            case "bins":
                number = number_of(row[feature["column"]])
                ids.append(0 if number is None else 1 + sum(edge <= number for edge in feature["edges"]))
            case "time":
                ids.append(part_of(seconds_of(row[feature["column"]], feature), feature["part"]))
            case "number":
                values += scaled(number_of(row[feature["column"]]), feature)
            case "vector":
                values += vector_of(row[feature["column"]], feature)
            case kind:
                raise AssertionError(kind)
    return ids, values


def text_of(value: Any) -> str | None:
    """Return the text of a value, None if it is missing."""
    if value is None or value == "" or value != value:  # noqa: PLR0124
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if abs(value) > 2**53:
            raise RefusedValue(value)
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, datetime):
        return str(value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value)
    if isinstance(value, list | dict):
        raise RefusedValue(value)
    return str(value)


def hash_of(text: str | None, rows: int) -> int:
    return 0 if text is None else 1 + zlib.crc32(text.encode()) % (rows - 1)


def id_in(table: Mapping[str, Any], text: str | None) -> int:
    if table["kind"] == "hash":
        return hash_of(text, table["rows"])
    return table["values"].index(text) + 1 if text in table["values"] else 0


def items_of(value: Any, separator: str) -> list[str]:
    items = value if isinstance(value, list) else value.split(separator) if isinstance(value, str) else [value]
    return [text for item in items if (text := text_of(item)) is not None]


def number_of(value: Any) -> float | None:
    """Return a value as a number, None if it is missing."""
    if isinstance(value, str) and value:
        if NUMBER.fullmatch(value) is None:
            raise RefusedValue(value)
        value = float(value)
    if value is None or value == "" or value != value:  # noqa: PLR0124
        return None
    if not isinstance(value, int | float) or math.isinf(value):
        raise RefusedValue(value)
    return float(value)


def as_float32(number: float) -> float:
    try:
        (found,) = struct.unpack("<f", struct.pack("<f", number))
    except OverflowError:
        raise RefusedValue(number) from None
    return found


def scaled(number: float | None, feature: Mapping[str, Any]) -> list[float]:
    missing = number is None
    if number is not None and feature["transform"] == "log1p":
        number = math.copysign(math.log1p(abs(number)), number)
    value = 0.0 if number is None else as_float32((number - feature["mean"]) / feature["deviation"])
    return [value, float(missing)] if feature["indicator"] else [value]


def vector_of(value: Any, feature: Mapping[str, Any]) -> list[float]:
    if isinstance(value, str) and feature["separator"] is not None:
        value = value.split(feature["separator"]) if value else None
    if not value and not isinstance(value, str):
        return [0.0] * feature["width"]
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != feature["width"]:
        raise RefusedValue(value)
    numbers = [number_of(item) for item in value]
    if None in numbers:
        raise RefusedValue(value)
    return [as_float32(number) for number in numbers if number is not None]


def seconds_of(value: Any, feature: Mapping[str, Any]) -> int | None:
    """Return a time as seconds since 1970-01-01 UTC, None if it is missing."""
    if isinstance(value, int) and feature["format"] is not None:
        value = str(value)
    if value is None or value == "" or value != value:  # noqa: PLR0124
        return None
    if isinstance(value, bool | list):
        raise RefusedValue(value)
    if isinstance(value, int):
        found = value // PER_SECOND[feature["unit"]]
    elif isinstance(value, float):
        if math.isinf(value):
            raise RefusedValue(value)
        found = math.floor(value / PER_SECOND[feature["unit"]])
    else:
        found = math.floor(time_of(value, feature["format"]).timestamp())
    if not -62_135_596_800 <= found <= 253_402_300_799:
        raise RefusedValue(value)
    return found


def time_of(value: Any, text_format: str | None) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    try:
        if text_format is not None:
            return datetime.strptime(value, text_format).replace(tzinfo=UTC)
        found = ISO.fullmatch(value)
        if found is None:
            raise RefusedValue(value)
        *parts, _, sign, hours, minutes = found.groups()
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        year, month, day, hour, minute, second = (int(part or 0) for part in parts)
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone(-offset if sign == "-" else offset))
    except ValueError:
        raise RefusedValue(value) from None


def part_of(seconds: int | None, part: str) -> int:
    if seconds is None:
        return 0
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return {"hour": time.hour + 1, "weekday": time.isoweekday(), "day": time.day, "month": time.month}[part]
