"""The split of rows into train, validation and test: by time, by a column, at random, or by user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from equipoise.data.encoding.text import text_of
from equipoise.data.encoding.times import times_of
from equipoise.data.tables.config import SplitConfig, TableConfig
from equipoise.data.tables.files import Table
from equipoise.data.tables.keys import MISSING, KeyPlace, hashed_values, mixed
from equipoise.errors import DataError

__all__ = ["SPLITS", "Assignment", "assign"]

SPLITS: Final = ("train", "validation", "test")
_DAY: Final = 86_400
_FIRST_USUAL: Final = 631_152_000  # 1990: times that all lie before it may have been read in a wrong unit
_MOST_DAYS: Final = 3660  # longer spans are no logs with a row on each day


@dataclass(frozen=True)
class Assignment:
    """The split of each row.

    Attributes:
        part: place in :data:`SPLITS`, int8, shape [rows].
        notes: sentences that say where the boundaries are, what leak the split prevents, and what it does not.
    """

    part: NDArray[np.int8]
    notes: tuple[str, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of rows of each split."""
        return tuple(int(count) for count in np.bincount(self.part, minlength=len(SPLITS)))


def assign(table: Table, config: TableConfig, /) -> Assignment:
    """Return the split of each row.

    - time: rows before a first time train, rows from a second one on test; rows of equal time are never parted.
    - column: by the values of a column.
    - random: by a hash of the row's number and the seed.
    - user: by a hash of the user and the seed, so that a user is in one split alone.

    Raises:
        DataError: there are no rows, a split would have none, a time is missing, or a value belongs to no split.
    """
    if not table.rows:
        raise DataError(
            f"Expected rows in {table.parts[0].name}{' and others' if table.parts[1:] else ''}, found none."
        )
    match config.split.by:
        case "time":
            found = _by_time(table, config)
        case "column":
            found = _by_column(table, config.split)
        case "user":
            found = _by_user(table, config)
        case _:
            found = _at_random(table, config.split)
    for name, count in zip(SPLITS, found.counts, strict=True):
        if not count:
            raise DataError(f"The {name} split has no rows, out of {table.rows}: {_remedy(config.split)}.")
    return found


def _remedy(split: SplitConfig) -> str:
    if split.by == "column":
        return f"name a value of the column {split.column!r} for it, with the key `split.values`"
    return "use more rows, or change the shares of `split`"


def _by_time(table: Table, config: TableConfig) -> Assignment:
    times = _times(table, config)
    distinct, counts = np.unique(times, return_counts=True)
    column = config.time.column if config.time is not None else ""
    if len(distinct) < len(SPLITS):
        raise DataError(
            f"A split by time needs rows at {len(SPLITS)} different times or more; the column {column!r} holds "
            f"{len(distinct)}, from {_shown(distinct[0])} to {_shown(distinct[-1])}. Set `split: {{by: random}}`, or "
            "another column or unit of `time`."
        )
    before = np.concatenate([[0], counts.cumsum()])  # rows before each distinct time
    wanted = [1 - config.split.test - config.split.validation, 1 - config.split.test]
    first, second = (int(np.abs(before - share * table.rows).argmin()) for share in wanted)
    first = min(max(first, 1), len(distinct) - 2)
    second = min(max(second, first + 1), len(distinct) - 1)
    part = (times >= distinct[first]).astype(np.int8) + (times >= distinct[second]).astype(np.int8)
    notes = [
        f"Split by time ({column}): train before {_shown(distinct[first])}, test from {_shown(distinct[second])} on "
        "(UTC). No row is later than one of the next split, as in production: nothing is learned from the future. "
        "Users and items may occur in several splits.",
        *_missing_days(distinct),
        *_doubtful_times(distinct, column),
    ]
    return Assignment(part, tuple(notes))


def _times(table: Table, config: TableConfig) -> NDArray[np.int64]:
    """Return the time of each row in seconds since 1970."""
    time = config.time
    assert time is not None  # the configuration checks it
    found = []
    missing, first_missing = 0, 0
    for block in table.blocks([time.column]):
        place = KeyPlace("time", time.column, block.first_row_of_file, file=block.file)
        times = times_of(block.frame[time.column], time.unit, time.format, place)
        if times.null_count():
            first_missing = first_missing if missing else block.first_row + int(times.is_null().arg_max() or 0)
            missing += times.null_count()
        found.append(times.fill_null(0).to_numpy())
    if missing:
        raise DataError(
            f"The column {time.column!r} of `time` should hold a time in each row; found {missing:,} missing, the "
            f"first in {table.place(first_missing)}. Drop those rows, or set `split: {{by: random}}`."
        )
    return np.concatenate(found)


def _missing_days(distinct: NDArray[np.int64]) -> Iterator[str]:
    """Note the days without rows between the first and the last."""
    days = np.unique(distinct // _DAY)
    span = int(days[-1] - days[0]) + 1
    if 1 < span <= _MOST_DAYS and (count := span - len(days)):
        gap = next(day for day in range(int(days[0]), int(days[-1])) if day not in set(days.tolist()))
        yield (
            f"{count} of {span} days have no rows, the first of them "
            f"{datetime.fromtimestamp(gap * _DAY, UTC):%Y-%m-%d}."
        )


def _doubtful_times(distinct: NDArray[np.int64], column: str) -> Iterator[str]:
    """Note times that all lie before 1990, as seconds do that are read as milliseconds."""
    if distinct[-1] < _FIRST_USUAL:
        yield (
            f"The times in {column} lie from {_shown(distinct[0])} to {_shown(distinct[-1])}: if that is not so, state "
            "the unit of `time`."
        )


def _shown(seconds: int) -> str:
    found = datetime(1970, 1, 1) + timedelta(seconds=int(seconds))
    return f"{found:%Y-%m-%d}" if seconds % _DAY == 0 else f"{found:%Y-%m-%d %H:%M:%S}"


def _by_column(table: Table, split: SplitConfig) -> Assignment:
    values = split.values or {name: (name,) for name in SPLITS}
    place_of = {value: SPLITS.index(name) for name, listed in values.items() for value in listed}
    found = []
    for block in table.blocks([split.column]):
        place = KeyPlace("split.column", split.column, block.first_row_of_file, file=block.file)
        texts = text_of(block.frame[split.column], place)
        part = texts.replace_strict(list(place_of), list(place_of.values()), default=-1, return_dtype=pl.Int8)
        if (unknown := part.fill_null(-1) < 0).any():
            row = int(unknown.arg_max() or 0)
            raise DataError(
                f"The column {split.column!r} of `split` should hold {', '.join(place_of)}; found {texts[row]!r} in "
                f"{table.place(block.first_row + row)}. Name the values of each split with the key `split.values`."
            )
        found.append(part.to_numpy())
    listed = "; ".join(f"{name}: {', '.join(values[name])}" for name in SPLITS if name in values)
    note = (
        f"Split by the column {split.column} ({listed}). It prevents the leaks that this column was made to prevent: "
        "users, items and times may occur in several splits."
    )
    return Assignment(np.concatenate(found).astype(np.int8), (note,))


def _at_random(table: Table, split: SplitConfig) -> Assignment:
    note = (
        f"Split at random (seed {split.seed}), row by row. The test rows are as new to the model as a single row is: "
        "users, items and times occur in several splits, so that results are better than on new users or later days."
    )
    return Assignment(_by_hash(np.arange(table.rows), split), (note,))


def _by_user(table: Table, config: TableConfig) -> Assignment:
    users = np.concatenate(
        [
            hashed_values(
                block.frame[config.user], KeyPlace("user", config.user, block.first_row_of_file, file=block.file)
            )
            for block in table.blocks([config.user])
        ]
    )
    notes = [
        f"Split by user ({config.user}, seed {config.split.seed}): a user is in one split alone, so that results hold "
        "for new users. Times overlap: the model may have seen days later than those of a test row."
    ]
    if missing := int((users == MISSING).sum()):
        notes.append(f"{missing:,} rows without a user are in one split, as if of one user.")
    return Assignment(_by_hash(users, config.split), tuple(notes))


def _by_hash(numbers: NDArray[np.int64] | NDArray[np.uint64], split: SplitConfig) -> NDArray[np.int8]:
    """Return the split of each number, by where its hash lies in [0, 1)."""
    salt = mixed(np.asarray([split.seed]))
    share = (mixed(numbers.astype(np.uint64) ^ salt) >> np.uint64(11)) / 2**53
    ends: Sequence[float] = (1 - split.test - split.validation, 1 - split.test)
    return np.searchsorted(ends, share, side="right").astype(np.int8)
