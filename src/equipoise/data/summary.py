"""A summary of a data set: features with missing values, tasks with their positives in each split, and warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from equipoise.data.dataset import Dataset
from equipoise.schema import PADDING, Categories, Task

__all__ = ["FeatureSummary", "Summary", "TaskSummary", "summarise"]

_ROWS_AT_ONCE: Final = 65_536
_FEW_POSITIVES: Final = {"train": 100, "validation": 30, "test": 30}
_MANY_MISSING: Final = 0.5
_SHIFT: Final = 0.1


@dataclass(frozen=True)
class FeatureSummary:
    """Facts about one feature.

    Attributes:
        kind: the kind in words, such as "12 values" or "vector of 64".
        unknown: split -> the share of rows with a missing or unseen value (of lists: without items); NaN for numbers,
            whose encoding has filled the gaps.
    """

    name: str
    kind: str
    unknown: Mapping[str, float]


@dataclass(frozen=True)
class TaskSummary:
    """Labels of one task in one split.

    Attributes:
        positives: labels of 1; of a regression, labels that are not 0.
        rate: the mean of the labels, NaN without any.
    """

    task: Task
    split: str
    rows: int
    labelled: int
    positives: int
    rate: float


@dataclass(frozen=True)
class Summary:
    """Features, labels and warnings of a data set."""

    name: str
    features: tuple[FeatureSummary, ...]
    tasks: tuple[TaskSummary, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def summarise(dataset: Dataset, /) -> Summary:
    """Return the summary of a data set; reads every row once.

    Example:
        >>> from equipoise.data import load
        >>> found = summarise(load("funnel", rows=3000))
        >>> [entry.positives > 0 for entry in found.tasks[:3]]
        [True, True, True]
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    unknown = {name: _unknown_shares(dataset, name) for name in splits}
    features = tuple(
        FeatureSummary(name, kind, {split: unknown[split].get(name, math.nan) for split in splits})
        for name, kind in _kinds(dataset).items()
    )
    tasks = tuple(
        _labels(task, split, rows.labels[:, place])
        for place, task in enumerate(dataset.schema.tasks)
        for split, rows in splits.items()
    )
    return Summary(dataset.name, features, tasks, dataset.notes, tuple(_warnings(features, tasks)))


def _kinds(dataset: Dataset) -> dict[str, str]:
    kinds = {}
    for feature in dataset.schema.categorical:
        values = f"{feature.cardinality - 1:,} values"
        several = f", lists of up to {feature.length}" if isinstance(feature, Categories) else ""
        kinds[feature.name] = values + several + (f", table of {feature.table}" if feature.table else "")
    for number in dataset.schema.numeric:
        width = getattr(number, "width", 1)
        kinds[number.name] = "number" if width == 1 else f"vector of {width}"
    return kinds


def _unknown_shares(dataset: Dataset, split: str) -> dict[str, float]:
    """Return the share of rows with id 0, or of lists without an item, of each categorical feature."""
    rows = getattr(dataset, split)
    unknown = torch.zeros(len(dataset.schema.categorical_columns), dtype=torch.int64)
    for batch in rows.batches(_ROWS_AT_ONCE):
        unknown += ((batch.categorical == 0) | (batch.categorical == PADDING)).sum(0)
    shares, place = {}, 0
    for feature in dataset.schema.categorical:  # of a list the first column: without an item, or one that is unseen
        shares[feature.name] = float(unknown[place]) / len(rows)
        place += feature.length if isinstance(feature, Categories) else 1
    return shares


def _labels(task: Task, split: str, column: Tensor) -> TaskSummary:
    there = column[~column.isnan()]
    rate = float(there.double().mean()) if len(there) else math.nan
    return TaskSummary(task, split, len(column), len(there), int((there != 0).sum()), rate)


def _warnings(features: tuple[FeatureSummary, ...], tasks: tuple[TaskSummary, ...]) -> Iterator[str]:
    for entry in tasks:
        few = _FEW_POSITIVES[entry.split]
        if entry.labelled == 0:
            yield f"{entry.task.name}: no row of the {entry.split} split has a label."
        elif entry.task.binary and entry.positives < few:
            yield (
                f"{entry.task.name}: {entry.positives} positives in the {entry.split} split; under {few}, "
                f"{'little can be learned' if entry.split == 'train' else 'its metrics are mostly noise'}."
            )
        elif entry.task.binary and entry.positives == entry.labelled:
            yield f"{entry.task.name}: every label of the {entry.split} split is 1."
    for feature in features:
        train, test = feature.unknown["train"], feature.unknown["test"]
        if test - train > _SHIFT:
            yield (
                f"{feature.name}: {test:.0%} of the test rows have a missing or unseen value, {train:.0%} of the train "
                "rows; hashing (rows: N) or a lower min_count may help."
            )
        elif train > _MANY_MISSING:
            yield f"{feature.name}: {train:.0%} of the train rows have a missing or rare value."
