"""The agreement of files with each other: each has the columns, and one type of a column holds the values of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from equipoise.errors import DataError, did_you_mean

__all__ = ["Part", "check_columns", "common_type"]

_EXACT: Final = 2**53  # whole numbers up to here are floats, too


@dataclass(frozen=True)
class Part:
    """The rows of one file, or of a table in memory.

    Attributes:
        name: the file, for messages.
        path: the Parquet file that holds the rows; none for a table in memory.
        rows: the number of rows.
        types: the types of the columns.
        partition: columns that the folders of the file state, with their values.
        was_text: whether the rows come from a text file, whose types are those that all texts of a column have.
    """

    name: str
    path: Path | None
    rows: int
    types: Mapping[str, pl.DataType]
    partition: Mapping[str, str | int | None] = field(default_factory=dict)
    was_text: bool = False


def check_columns(name: str, found: Mapping[str, pl.DataType], wanted: Mapping[str, str], /) -> None:
    """Refuse a file without all of the columns.

    Raises:
        DataError: a column is missing; the message names the key that wants it, and names close to it.
    """
    for column, key in wanted.items():
        if column in found:
            continue
        wants = f" (named by {key})" if key else ""
        raise DataError(
            f"{name}: expected the column {column!r}{wants}, found only {', '.join(found)}"
            f"{did_you_mean(column, found)}{_hint(found)}."
        )


def _hint(found: Mapping[str, pl.DataType]) -> str:
    """Say which separator a text file seems to have, where its header came out as a single column."""
    (only, *others) = found or [""]
    seems = [text for text in (";", "\t", "|", ",") if text in only]
    if others or not seems:
        return ""
    key = "`format: tsv`" if seems[0] == "\t" else f'`separator: "{seems[0]}"`'
    return f"; its fields seem to be separated by {seems[0]!r}: set {key}"


def common_type(column: str, parts: Sequence[Part], /) -> pl.DataType:
    """Return a type that holds the values of all files as they are.

    Raises:
        DataError: there is none; the message names two files and their types.
    """
    first = parts[0]
    common = first.types[column]
    for part in parts[1:]:
        other = part.types[column]
        if other == common:
            continue
        wider = _wider(common, other)
        if wider is None and first.was_text and part.was_text and _are_whole_or_text(common, other):
            wider = pl.String()  # texts of whole numbers are the texts that stood in the file
        if wider is None:
            raise DataError(
                f"The column {column!r} should have one type in all files; found {common} in {first.name} and {other} "
                f"in {part.name}. Write both with the same type."
            )
        if wider != common:
            first, common = part, wider
    if common == pl.Float64:
        _check_exact(column, parts)
    return common


def _are_whole_or_text(one: pl.DataType, other: pl.DataType) -> bool:
    return all(dtype.is_integer() or dtype == pl.String for dtype in (one, other))


def _wider(one: pl.DataType, other: pl.DataType) -> pl.DataType | None:
    """Return a type for the values of both; None if there is none that keeps them as they are."""
    texts, lists = (pl.String, pl.Categorical, pl.Enum), (pl.List, pl.Array)
    found: pl.DataType | None = None
    if pl.Null in {type(one), type(other)}:
        found = other if one == pl.Null else one
    elif one.is_integer() and other.is_integer():
        found = None if pl.UInt64 in {type(one), type(other)} else pl.Int64()
    elif one.is_numeric() and other.is_numeric():
        found = pl.Float64()
    elif isinstance(one, texts) and isinstance(other, texts):
        found = pl.String()
    elif isinstance(one, pl.Datetime) and isinstance(other, pl.Datetime) and one.time_zone == other.time_zone:
        found = pl.Datetime("us", one.time_zone)
    elif isinstance(one, lists) and isinstance(other, lists):
        inner = [dtype if isinstance(dtype, pl.DataType) else dtype() for dtype in (one.inner, other.inner)]
        wider = inner[0] if inner[0] == inner[1] else _wider(*inner)
        found = None if wider is None else pl.List(wider)
    return found


def _check_exact(column: str, parts: Sequence[Part]) -> None:
    """Refuse whole numbers that change when read as floats, because other files hold floats: ids would coincide."""
    for part in parts:
        if not part.types[column].is_integer() or part.path is None or column in part.partition:
            continue
        scan = pl.scan_parquet(part.path, glob=False, hive_partitioning=False)
        least, largest = scan.select(pl.col(column).min().alias("least"), pl.col(column).max()).collect().row(0)
        if least is not None and max(-least, largest) > _EXACT:
            other = next(other for other in parts if not other.types[column].is_integer())
            raise DataError(
                f"The column {column!r} should have one type in all files; found {part.types[column]} in {part.name}, "
                f"with numbers that a float cannot hold, and {other.types[column]} in {other.name}. Write both as "
                "whole numbers."
            )
