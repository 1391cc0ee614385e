"""The text of values, the same for 3, 3.0 and "3", so that files and requests of different types agree."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from equipoise.data.encoding.places import Place

__all__ = ["JOINT", "missing_count", "missing_or_same", "normal_form", "text_of"]

JOINT: Final = "\x1f"
"""The character between the texts of a cross, the unit separator of ASCII."""

_WITH_TEXT: Final = (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Boolean, pl.Date, pl.Time, pl.Null)
_EXACT: Final = 2.0**53


def normal_form(values: pl.Series, place: Place) -> pl.Series:
    """Return values as Int64, or else as text, with null for what is missing: null, NaN and the empty text.

    The text of a value, which :func:`text_of` gives, is that of the form that this function returns:

    - whole numbers, also those of float columns: decimal digits, ``-`` before negative ones; −0.0 gives ``0``
    - other floats: the shortest digits that read back as the same float, as Python's ``repr`` writes them
    - decimals: without zeros at the end
    - booleans: ``true`` and ``false``
    - dates: ``2026-01-31``; times of a day: ``12:30:00``
    - dates with a time, brought to UTC: ``2026-01-31 12:30:00``, with six more digits where microseconds are not 0
    - text: as it is; nothing is stripped, and ``007`` is another value than ``7``

    Raises:
        DataError: the type has no text, or a float is beyond ±2^53, where digits of ids are lost.
    """
    dtype = values.dtype
    if dtype.is_float():
        return _normal_form_of_floats(values, place)
    if dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128):
        return values.cast(pl.Int64)
    if isinstance(dtype, pl.Decimal) and dtype.scale:
        return values.cast(pl.String).str.replace(r"\.?0+$", "")
    if isinstance(dtype, pl.Datetime):
        times = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if dtype.time_zone else values
        whole = times.dt.microsecond() == 0
        return times.dt.strftime("%Y-%m-%d %H:%M:%S").zip_with(whole, times.dt.strftime("%Y-%m-%d %H:%M:%S%.6f"))
    if dtype not in _WITH_TEXT and not dtype.is_integer() and not isinstance(dtype, pl.Decimal):
        hint = "; for a list of values use the kind 'categories'" if dtype in (pl.List, pl.Array) else ""
        raise place.refuse("text, numbers, booleans or dates", f"{dtype}{hint}")
    try:
        texts = values.cast(pl.String)
    except pl.exceptions.ComputeError:
        wrong = np.array([value is not None and not _is_utf8(value) for value in values.to_list()])
        raise place.refuse_value(wrong, values, "text in UTF-8") from None
    return missing_or_same(texts)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def missing_or_same(texts: pl.Series) -> pl.Series:
    """Return texts with null for the empty one."""
    empty = texts == ""
    return texts.set(empty, None) if empty.any() else texts


def missing_count(values: pl.Series) -> int:
    """Return the number of missing values: null, NaN and the empty text."""
    missing = values.null_count()
    if values.dtype.is_float():
        missing += int(values.is_nan().sum())
    if values.dtype == pl.String:
        missing += int((values == "").sum())
    return missing


def _normal_form_of_floats(values: pl.Series, place: Place) -> pl.Series:
    values = values.fill_nan(None)
    if (wrong := (values.abs() > _EXACT).fill_null(False)).any():
        raise place.refuse_value(
            wrong, values, "ids that a float holds exactly, up to 2^53 (store longer ones as whole numbers or text)"
        )
    whole = values.cast(pl.Int64, strict=False)
    fractional = (whole.cast(values.dtype) != values).fill_null(False)
    if not fractional.any():
        return whole
    distinct = values.filter(fractional).unique()
    # through the shortest digits of the column's own type, so that 0.1 is "0.1" in float32, too
    texts = pl.Series([repr(float(str(value))) for value in distinct.to_numpy()], dtype=pl.String)
    return whole.cast(pl.String).zip_with(~fractional, values.replace_strict(distinct, texts, default=None))


def text_of(values: pl.Series, place: Place) -> pl.Series:
    """Return the text of values, see :func:`normal_form`; null for what is missing."""
    return normal_form(values, place).cast(pl.String)
