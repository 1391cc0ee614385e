"""The encoder of a part of a time: the hour, the weekday, the day of the month or the month."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator

from equipoise.data.encoding.encoder import ColumnEncoder
from equipoise.data.encoding.id_tables import IdTable
from equipoise.data.encoding.places import Place
from equipoise.data.encoding.text import missing_or_same
from equipoise.schema import Categorical

__all__ = ["TimeEncoder", "check_format", "times_of"]

Unit = Literal["s", "ms", "us", "ns"]

_PER_SECOND: Final[Mapping[str, int]] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999
_ISO: Final = (
    r"^([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.[0-9]+)?)?(?:(Z)|([+-])([0-9]{2}):?([0-9]{2})?)?)?$"
)
_EXAMPLE: Final = datetime(2026, 12, 31, 23, 58, 59, tzinfo=UTC)
_DIRECTIVES: Final = "YmdHMSyjbBpI%"


def check_format(text_format: str | None) -> str | None:
    """Return a format of times, if polars and ``strptime`` read it alike and it has a year, a month and a day.

    Raises:
        ValueError: they do not, or it has not.
    """
    if text_format is not None:
        if unknown := sorted(set(re.findall("%(.)", text_format)) - set(_DIRECTIVES)):
            raise ValueError(f"expected the directives %{', %'.join(_DIRECTIVES)}; found %{unknown[0]}")
        try:
            found = _seconds_of_text(pl.Series([_EXAMPLE.strftime(text_format)]), text_format)[0]
        except pl.exceptions.ComputeError:
            found = None
        if found is None or found // 86_400 != _EXAMPLE.timestamp() // 86_400:
            raise ValueError(f"expected a format with a year, a month and a day, found {text_format!r}")
    return text_format


TimeFormat = Annotated[str | None, AfterValidator(check_format)]


def times_of(values: pl.Series, unit: Unit, text_format: str | None, place: Place) -> pl.Series:
    """Return times as seconds since 1970-01-01 UTC, Int64, rounded down, with null for missing ones.

    Args:
        values: dates, dates with a time (of any time zone), numbers since 1970-01-01 UTC, or text.
        unit: the unit of numbers.
        text_format: the format of text, and of whole numbers such as 20260131, in the directives of ``strptime``; None:
            text is ISO 8601: a date, or a date with a time and perhaps an offset from UTC.

    Raises:
        DataError: the type holds no times, a text is of another format, or a time is outside the years 1 to 9999.
    """
    dtype = values.dtype
    if dtype == pl.Null:
        return values.cast(pl.Int64)
    if dtype == pl.Date:
        return values.cast(pl.Datetime("ms")).dt.epoch("s")
    if isinstance(dtype, pl.Datetime):
        return values.dt.epoch("s")
    if dtype.is_integer() and text_format is None:
        found = values.cast(pl.Int64) // _PER_SECOND[unit]
    elif dtype.is_float():
        values = values.fill_nan(None)
        found = (values.cast(pl.Float64) / _PER_SECOND[unit]).floor().cast(pl.Int64, strict=False)
    elif dtype in (pl.String, pl.Categorical, pl.Enum) or dtype.is_integer():
        values = missing_or_same(values.cast(pl.String))
        found = _seconds_of_text(values, text_format)
    else:
        raise place.refuse("times: dates, numbers or text", str(dtype))
    wrong = (found.is_null() & values.is_not_null()) | ((found < _FIRST) | (found > _LAST)).fill_null(False)
    if wrong.any():
        if values.dtype.is_numeric():
            raise place.refuse_value(wrong, values, f"times in the years 1 to 9999 (in the unit {unit!r})")
        raise place.refuse_value(wrong, values, f"times in the format {text_format or 'ISO 8601'!r}")
    return found


def _seconds_of_text(texts: pl.Series, text_format: str | None) -> pl.Series:
    if text_format is not None:
        if re.search("%[HI]", text_format) and "%M" not in text_format:  # polars reads no hour without minutes
            texts, text_format = texts + "|00", f"{text_format}|%M"
        return texts.str.to_datetime(text_format, time_unit="ms", strict=False).dt.epoch("s")
    parts = texts.str.extract_groups(_ISO).struct.unnest()
    parts.columns = ["year", "month", "day", "hour", "minute", "second", "utc", "sign", "hours", "minutes"]
    number = {name: pl.col(name).cast(pl.Int32).fill_null(0) for name in parts.columns if name not in ("utc", "sign")}
    day = pl.concat_str(["year", "month", "day"], separator="-").str.to_date("%Y-%m-%d", strict=False)
    offset = (number["hours"] * 3600 + number["minutes"] * 60) * pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    valid = (number["hour"] < 24) & (number["minute"] < 60) & (number["second"] < 60)
    seconds = day.cast(pl.Int64) * 86_400 + number["hour"] * 3600 + number["minute"] * 60 + number["second"] - offset
    return parts.select(pl.when(valid).then(seconds).alias("seconds")).to_series()


class TimeEncoder(ColumnEncoder):
    """A part of a time in UTC, as an id; 0 if the time is missing.

    The ids: hour 0 to 23 plus 1; weekday 1 (Monday) to 7; day of the month 1 to 31; month 1 to 12.

    Attributes:
        unit: of times that are numbers: since 1970-01-01 UTC.
        format: of times that are text, in the directives of ``strptime``; None: ISO 8601.
    """

    kind: Literal["time"] = "time"
    part: Literal["hour", "weekday", "day", "month"]
    unit: Unit
    format: TimeFormat

    @property
    def feature(self) -> Categorical:
        """The feature as the schema holds it."""
        return Categorical(self.name, len(_NAMES[self.part]) + 1)

    def encode_column(self, values: pl.Series, place: Place, tables: Mapping[str, IdTable]) -> NDArray[np.int32]:
        """Return ids, shape [rows]."""
        seconds = times_of(values, self.unit, self.format, place)
        if self.part == "hour":
            ids = seconds.cast(pl.Int64) // 3600 % 24 + 1
        else:
            times = (seconds * 1000).cast(pl.Datetime("ms"))
            ids = {"weekday": times.dt.weekday, "day": times.dt.day, "month": times.dt.month}[self.part]()
        return ids.fill_null(0).to_numpy().astype(np.int32)

    def value_names(self, tables: Mapping[str, IdTable]) -> list[str]:
        """Return the name of each id."""
        return ["missing", *_NAMES[self.part]]


_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "hour": tuple(f"{hour:02}:00" for hour in range(24)),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "day": tuple(str(day) for day in range(1, 32)),
    "month": (
        "January", "February", "March", "April", "May", "June",
        "July", "August", "September", "October", "November", "December",
    ),
}  # fmt: skip
