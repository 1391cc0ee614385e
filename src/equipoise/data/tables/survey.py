"""One pass over labels, weights and slices: what a data set needs to know about them before its rows are encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from equipoise.data.encoding.text import normal_form
from equipoise.data.tables.config import TableConfig, TaskConfig
from equipoise.data.tables.files import Block, Table
from equipoise.data.tables.keys import KeyPlace
from equipoise.data.tables.labels import Labels
from equipoise.data.tables.split import SPLITS, Assignment
from equipoise.errors import DataError
from equipoise.schema import Task

__all__ = ["Survey", "survey_of"]

FEW: Final = 100
"""Train positives below which a note says that they are few."""

MOST_SLICES: Final = 1000
"""Different values that a column of slices may have."""


@dataclass
class _Figures:
    """Figures of one task: arrays of one number per split."""

    labelled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    positives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # of the deviations from the mean

    def add(self, labels: NDArray[np.float32], part: NDArray[np.int8], task: TaskConfig) -> None:
        """Add the labels of a block."""
        there = ~np.isnan(labels)
        self.labelled += np.bincount(part[there], minlength=len(SPLITS))
        self.positives += np.bincount(part[there & (labels > 0)], minlength=len(SPLITS))
        if task.kind == "binary":
            return
        values = labels[np.isfinite(labels) & (part == 0)].astype(np.float64)  # infinite ones are refused later
        values = np.log1p(np.maximum(values, 0)) if task.loss == "log" else values  # negative ones are refused later
        if len(values):  # merged as by Chan, Golub and LeVeque (1979): no difference of large sums
            count, shift = self.count + len(values), values.mean() - self.mean
            self.squares += ((values - values.mean()) ** 2).sum() + shift**2 * self.count * len(values) / count
            self.mean += shift * len(values) / count
            self.count = count

    @property
    def scale(self) -> float:
        """The standard deviation of the train rows."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0


@dataclass(frozen=True)
class Survey:
    """The result of the pass.

    Attributes:
        tasks: the tasks, regressions with mean and scale of the train rows.
        slices: the values of each slice, as its column holds them, in the order of their codes from 1 on.
        notes: sentences on labels that a reader of results should know.
    """

    tasks: tuple[Task, ...]
    slices: Mapping[str, pl.Series]
    notes: tuple[str, ...]


def survey_of(
    table: Table, config: TableConfig, labels: Labels, assignment: Assignment, slices: Mapping[str, str], /
) -> Survey:
    """Read labels, weights and slices once.

    Args:
        slices: the column of each slice.

    Raises:
        DataError: a label or a weight cannot be used, a task has nothing to learn, or a slice has too many values.
    """
    figures = {name: _Figures() for name in config.tasks}
    values: dict[str, list[pl.Series]] = {name: [] for name in slices}
    weights = _Weights(table, config.weight) if config.weight else None
    columns = dict.fromkeys([*labels.columns, *([config.weight] if config.weight else []), *slices.values()])
    for block in table.blocks(list(columns)):
        part = assignment.part[block.first_row : block.first_row + block.frame.height]
        found = labels.read(block.frame, block.first_row).values
        for i, (name, task) in enumerate(config.tasks.items()):
            figures[name].add(found[:, i], part, task)
        if weights is not None:
            weights.add(block, part)
        for name, column in slices.items():
            values[name] = [_distinct(values[name], block, name, column)]
    labels.check()
    if weights is not None:
        weights.check()
    _check_learnable(figures, config)
    tasks = tuple(_task(name, task, figures[name]) for name, task in config.tasks.items())
    return Survey(
        tasks, {name: found[0].sort() for name, found in values.items()}, tuple(_notes(figures, config, labels))
    )


def _distinct(before: Sequence[pl.Series], block: Block, name: str, column: str) -> pl.Series:
    place = KeyPlace(f"slices.{name}", column, block.first_row_of_file, file=block.file)
    here = normal_form(block.frame[column], place).unique().drop_nulls()
    if before and before[0].dtype != here.dtype:  # numbers in one block that are whole and in another that are not
        here, before = here.cast(pl.String), [before[0].cast(pl.String)]
    found = pl.concat([*before, here]).unique()
    if len(found) > MOST_SLICES:
        raise DataError(
            f"slices: the column {column!r} has more than {MOST_SLICES} different values, too many to report on each. "
            "Leave it out, or give a column with fewer."
        )
    return found


class _Weights:
    """Checks the importance of rows."""

    def __init__(self, table: Table, column: str) -> None:
        self.table, self.column = table, column
        self.wrong = self.row = 0
        self.first: object = None
        self.sums = np.zeros(len(SPLITS))

    def add(self, block: Block, part: NDArray[np.int8]) -> None:
        """Check the weights of a block."""
        values = block.frame[self.column]
        if not (values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null)):
            raise DataError(f"weight: expected numbers from 0 up in the column {self.column!r}, found {values.dtype}.")
        numbers = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
        wrong = ~(np.isfinite(numbers.astype(np.float32)) & (numbers >= 0))
        if wrong.any() and not self.wrong:
            at = int(wrong.argmax())
            self.first, self.row = values[at], block.first_row + at
        self.wrong += int(wrong.sum())
        self.sums += np.bincount(part, np.where(wrong, 0, numbers), minlength=len(SPLITS))

    def check(self) -> None:
        """Refuse weights that are missing, negative or not finite, or a split without any."""
        if self.wrong:
            raise DataError(
                f"weight: expected a finite number from 0 up in each row of the column {self.column!r}; found "
                f"{self.wrong:,} others, the first {self.first!r} in {self.table.place(self.row)}."
            )
        for name, total in zip(SPLITS, self.sums, strict=True):
            if not total:
                raise DataError(f"weight: the column {self.column!r} is 0 in all rows of the {name} split.")


def _check_learnable(figures: Mapping[str, _Figures], config: TableConfig) -> None:
    """Refuse tasks that train rows cannot teach, all in one message."""
    lines = []
    for name, task in config.tasks.items():
        found = figures[name]
        labelled, positives = int(found.labelled[0]), int(found.positives[0])
        among = f" where {task.after!r} is 1" if task.after and task.over == "parent" else ""
        if not labelled:
            lines.append(f"  tasks.{name}: the train rows have no label{among}")
        elif task.kind == "binary" and positives in {0, labelled}:
            lines.append(f"  tasks.{name}: the label is {min(positives, 1)} in all {labelled:,} train rows{among}")
        elif task.kind == "regression" and not found.scale > 0:
            lines.append(f"  tasks.{name}: the label is {found.mean:g} in all {labelled:,} train rows{among}")
    if lines:
        raise DataError("\n".join(["Some tasks have nothing to learn: leave them out, or correct them.", *lines]))


def _task(name: str, task: TaskConfig, figures: _Figures) -> Task:
    is_regression = task.kind == "regression"
    return Task(
        name, task.description, kind=task.kind, loss=task.loss,
        mean=float(figures.mean) if is_regression else 0.0, scale=figures.scale if is_regression else 1.0,
        positive_weight=task.positive_weight, after=task.after, over=task.over,
    )  # fmt: skip


def _notes(figures: Mapping[str, _Figures], config: TableConfig, labels: Labels) -> Iterator[str]:
    for name, task in config.tasks.items():
        found = figures[name]
        if task.kind == "binary":
            fewest = min(found.positives[0], found.labelled[0] - found.positives[0])
            if fewest < FEW:
                kind = "positive" if fewest == found.positives[0] else "negative"
                yield f"The task {name} has only {fewest} {kind} labels in train: results will differ between seeds."
        for i, split in enumerate(SPLITS[1:], 1):
            labelled, positives = int(found.labelled[i]), int(found.positives[i])
            if not labelled:
                yield f"The task {name} has no labels in {split}: its metrics there are undefined."
            elif task.kind == "binary" and positives in {0, labelled}:
                yield f"The task {name} has labels of {min(positives, 1)} alone in {split}: its AUC there is undefined."
    yield from labels.notes()
