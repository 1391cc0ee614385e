"""The preparation of own tables: split, labels and encoding are settled first, then rows are encoded block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from equipoise.data.dataset import DAY, Split
from equipoise.data.encoding import Encoding, fit
from equipoise.data.encoding.text import normal_form
from equipoise.data.encoding.times import times_of
from equipoise.data.tables.config import FeatureConfig, TableConfig
from equipoise.data.tables.files import Block, Source, Table
from equipoise.data.tables.keys import KeyPlace, hashed_values
from equipoise.data.tables.labels import Labels, expression_of
from equipoise.data.tables.split import SPLITS, Assignment, assign
from equipoise.data.tables.survey import survey_of
from equipoise.errors import DataError
from equipoise.schema import Sampled, Schema

__all__ = ["Preparation", "prepare"]

_SECONDS_OF_DAY = 86_400
_PART = "\x1fsplit"  # the name of a column beside the user's


@dataclass(frozen=True)
class Preparation:
    """Split, labels and encoding of a data set, settled before its rows are encoded.

    Attributes:
        config: the description of the tables.
        table: the raw rows, with the columns that are needed.
        assignment: the split of each row.
        labels: reads the labels.
        encoding: turns raw columns into ids and numbers, fitted on train rows.
        slices: the column and the values of each slice, in the order of their codes from 1 on.
        notes: sentences for readers of results.
    """

    config: TableConfig
    table: Table
    assignment: Assignment
    labels: Labels
    encoding: Encoding
    slices: Mapping[str, tuple[str, pl.Series]]
    notes: tuple[str, ...]

    @property
    def schema(self) -> Schema:
        """The schema of the encoded rows."""
        return self.encoding.schema_of_batches

    @property
    def values(self) -> dict[str, list[str]]:
        """The names of the codes of each slice; code 0 is that of a missing value."""
        return {name: ["missing", *values.cast(pl.String)] for name, (_, values) in self.slices.items()}

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the keys of each row: the user, the slices, and the day where rows have a time."""
        user = [self.config.user] if self.config.user else []
        return tuple(dict.fromkeys([*user, *self.slices, *([DAY] if self.config.time is not None else [])]))

    def blocks(self, first: int = 0) -> Iterator[dict[str, Split]]:
        """Yield the encoded rows, block by block, by split; always the same blocks.

        Args:
            first: the number of the first block to yield.

        Raises:
            DataError: a file is damaged, or a value cannot be encoded.
        """
        for number, block in enumerate(self.table.blocks(tuple(self.table.types))):
            if number >= first:
                yield self._encoded(block)

    def _encoded(self, block: Block) -> dict[str, Split]:
        frame, config = block.frame, self.config
        try:
            categorical, numeric = self.encoding.encode(frame, first_row=block.first_row_of_file)
        except DataError as error:
            raise DataError(f"{block.file}: {error}") from None
        found = self.labels.read(frame, block.first_row)
        importance = None
        if config.weight:
            importance = torch.from_numpy(frame[config.weight].cast(pl.Float32).to_numpy().copy())
        whole = Split(
            categorical, numeric, torch.from_numpy(found.values), torch.from_numpy(found.weight), importance,
            {name: torch.from_numpy(self._codes(name, block)) for name in self.keys},
        )  # fmt: skip
        part = torch.from_numpy(self.assignment.part[block.first_row : block.first_row + frame.height])
        return {name: whole.take(part == i) for i, name in enumerate(SPLITS)}

    def _codes(self, name: str, block: Block) -> NDArray[np.int64]:
        if name == DAY and name not in self.slices and name != self.config.user:
            return self._days(block)
        if name not in self.slices:
            place = KeyPlace("user", name, block.first_row_of_file, file=block.file)
            return (hashed_values(block.frame[name], place) >> np.uint64(1)).astype(np.int64)
        column, values = self.slices[name]
        place = KeyPlace("slices", column, block.first_row_of_file, file=block.file)
        found = normal_form(block.frame[column], place).cast(values.dtype)
        codes = pl.Series(range(1, len(values) + 1), dtype=pl.Int64)
        return found.replace_strict(values, codes, default=0, return_dtype=pl.Int64).to_numpy().copy()

    def _days(self, block: Block) -> NDArray[np.int64]:
        """Return the day of each row, counted from 1970-01-01 UTC; -1 where the time is missing."""
        time = self.config.time
        assert time is not None
        place = KeyPlace("time", time.column, block.first_row_of_file, file=block.file)
        days = times_of(block.frame[time.column], time.unit, time.format, place) // _SECONDS_OF_DAY
        return days.fill_null(-1).to_numpy().copy()


def prepare(source: Source, config: TableConfig, /) -> Preparation:
    """Settle split, labels and encoding of own tables.

    Raises:
        DataError: a column is missing or cannot be used, a label is wrong, a split would be empty, a task has nothing
            to learn, or a feature is a label.
    """
    expressions = {
        name: expression_of(task.label, list(source.types), f"tasks.{name}.label")
        for name, task in config.tasks.items()
    }
    slices = {name: _column_of(config.features.get(name)) or name for name in config.slices}
    table = source.table(_wanted(config, expressions, slices))
    _check_no_label_is_a_feature(config, expressions)
    assignment = assign(table, config)
    labels = Labels(table, config, expressions)
    survey = survey_of(table, config, labels, assignment, slices)
    sampled = None if config.sampled is None else Sampled(config.sampled.task, config.sampled.rate)
    train = table.frame.with_columns(pl.Series(_PART, assignment.part)).filter(pl.col(_PART) == 0)
    try:
        encoding = fit(train, config.features, survey.tasks, sampled)
    except (pl.exceptions.PolarsError, OSError):
        table.check_readable()
        raise
    empty = tuple(f"{part.name} has no rows." for part in table.parts if not part.rows)
    return Preparation(
        config, table, assignment, labels, encoding,
        {name: (column, survey.slices[name]) for name, column in slices.items()},
        (*assignment.notes, *survey.notes, *empty),
    )  # fmt: skip


def _column_of(feature: FeatureConfig | None) -> str:
    return "" if feature is None or feature.kind == "cross" else feature.column


def _wanted(config: TableConfig, expressions: Mapping[str, pl.Expr], slices: Mapping[str, str]) -> dict[str, str]:
    """Return the columns to read, each with the key that names it."""
    found: dict[str, str] = {}
    for name, feature in config.features.items():
        for column in feature.of if feature.kind == "cross" else [feature.column]:
            found.setdefault(column, f"features.{name}")
    for name, expression in expressions.items():
        for column in expression.meta.root_names():
            found.setdefault(column, f"tasks.{name}.label")
    others = [
        ("time", config.time.column if config.time is not None else ""),
        ("user", config.user),
        ("weight", config.weight),
        ("split.column", config.split.column),
        *(("slices", column) for column in slices.values()),
    ]
    for key, column in others:
        if column:
            found.setdefault(column, key)
    return found


def _check_no_label_is_a_feature(config: TableConfig, expressions: Mapping[str, pl.Expr]) -> None:
    """Refuse features that read the only column of a label: they would tell what is to be predicted.

    Raises:
        DataError: there is one.
    """
    for name, feature in config.features.items():
        columns = set(feature.of if feature.kind == "cross" else [feature.column])
        for task, expression in expressions.items():
            roots = set(expression.meta.root_names())
            if len(roots) == 1 and roots <= columns:
                raise DataError(
                    f"features.{name} reads the column {min(roots)!r}, which is the label of the task {task!r}: the "
                    "model would see the answer. Leave the feature out."
                )
