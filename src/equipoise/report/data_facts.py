"""Facts about a data set for its page: overlap of labels, drift of features and rates, features that may leak."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import torch
from torch import Tensor

from equipoise.data import AnySplit, Dataset, Split
from equipoise.data.dataset import DAY
from equipoise.ranking.metrics import auc
from equipoise.schema import Categories, Vector

__all__ = ["DayFacts", "FeatureFacts", "Overlap", "by_day", "features_of", "label_overlaps"]

_MOST_ROWS: Final = 200_000
_SEED: Final = 0
_BINS: Final = 32
_LARGEST_VALUES: Final = 20  # of a feature, told apart for its drift; the rest counts as one value
_SMOOTHING: Final = 20.0  # rows at the base rate that are added to each value's own


@dataclass(frozen=True)
class Overlap:
    """Rows where two tasks are positive.

    Attributes:
        share: of the rows where ``task`` is 1 and ``other`` has a label, the part where ``other`` is 1; NaN without.
        rows: the number of these rows.
    """

    task: str
    other: str
    share: float
    rows: int


@dataclass(frozen=True)
class FeatureFacts:
    """Drift and predictive power of one feature.

    Attributes:
        values: distinct ids in the train rows; None for numbers.
        unknown: the share of train rows with a missing or rare value; NaN for numbers.
        drift: the total variation distance between its train and test distributions, from 0 to 1.
        auc: task -> the AUC of predicting it from this feature alone, each value by its mean label in the other half
            of the rows; NaN where there is one class.
    """

    name: str
    values: int | None
    unknown: float
    drift: float
    auc: dict[str, float]


@dataclass(frozen=True)
class DayFacts:
    """The rows of one day, and the mean label of each task in them."""

    day: date
    rows: int
    rates: dict[str, float]


def label_overlaps(dataset: Dataset, /) -> list[Overlap]:
    """Return the overlap of all pairs of binary tasks in the train rows."""
    labels, found = dataset.train.labels, []
    for place, task in enumerate(dataset.schema.tasks):
        for other_place, other in enumerate(dataset.schema.tasks):
            if task.binary and other.binary and place != other_place:
                of_task = labels[labels[:, place] == 1, other_place]
                there = of_task[~of_task.isnan()]
                share = float(there.double().mean()) if len(there) else math.nan
                found.append(Overlap(task.name, other.name, share, len(there)))
    return found


def features_of(dataset: Dataset, /) -> list[FeatureFacts]:
    """Return the facts about each feature, from at most 200,000 rows of the train and of the test split."""
    train, test = _random_rows(dataset.train), _random_rows(dataset.test)
    before = dict(_columns(dataset, train))
    after = dict(_columns(dataset, test))
    known = {feature.name for feature in dataset.schema.categorical}
    found = []
    for name, values in before.items():
        edges = None if name in known else _edges(values)
        ids = values if edges is None else torch.bucketize(values, edges)
        ids_after = after[name] if edges is None else torch.bucketize(after[name], edges)
        found.append(
            FeatureFacts(
                name,
                len(torch.unique(ids)) if name in known else None,
                float((ids <= 0).double().mean()) if name in known else math.nan,
                _drift(ids, ids_after),
                {
                    task.name: _auc_alone(ids, train.labels[:, place])
                    for place, task in enumerate(dataset.schema.tasks)
                    if task.binary
                },
            )
        )
    return found


def by_day(dataset: Dataset, /) -> list[DayFacts]:
    """Return rows and mean labels of each day over all splits; empty if the splits have no key "day"."""
    splits = (dataset.train, dataset.validation, dataset.test)
    if not all(DAY in split.keys for split in splits):
        return []
    days = torch.cat([split.keys[DAY] for split in splits])
    labels = torch.cat([split.labels for split in splits]).double()
    found = []
    for day in torch.unique(days[days >= 0]).tolist():
        of_day = labels[days == day]
        rates = dict(zip(dataset.schema.task_names, of_day.nanmean(0).tolist(), strict=True))
        found.append(DayFacts(date(1970, 1, 1) + timedelta(days=day), len(of_day), rates))
    return found


def _random_rows(split: AnySplit) -> Split:
    if len(split) <= _MOST_ROWS:
        return split.take(slice(None))
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(_SEED))[:_MOST_ROWS]
    return split.take(rows)


def _columns(dataset: Dataset, split: Split) -> Iterator[tuple[str, Tensor]]:
    """Yield the values of each feature with one value per row; of a list the newest item stands for it."""
    place = 0
    for feature in dataset.schema.categorical:
        if isinstance(feature, Categories):
            block = split.categorical[:, place : place + feature.length]
            newest = ((block >= 0).sum(1) - 1).clamp(min=0)
            yield feature.name, block.gather(1, newest[:, None]).squeeze(1).long()
            place += feature.length
        else:
            yield feature.name, split.categorical[:, place].long()
            place += 1
    place = 0
    for number in dataset.schema.numeric:
        if isinstance(number, Vector):  # no single value stands for it
            place += number.width
        else:
            yield number.name, split.numeric[:, place].contiguous()
            place += 1


def _edges(values: Tensor) -> Tensor:
    levels = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)[1:-1]
    edges: Tensor = torch.unique(values.double().quantile(levels).float())
    return edges


def _drift(before: Tensor, after: Tensor) -> float:
    """Return the total variation distance over the largest values and the rest."""
    values, counts = torch.unique(before, return_counts=True)
    largest = values[counts.argsort(descending=True)[:_LARGEST_VALUES]]
    shares = [torch.stack([(column == value).double().mean() for value in largest]) for column in (before, after)]
    rest = (shares[0].sum() - shares[1].sum()).abs()
    return float(((shares[0] - shares[1]).abs().sum() + rest) / 2)


def _auc_alone(ids: Tensor, labels: Tensor) -> float:
    """Return the AUC of each row's value, scored by the mean label of that value in the rows of other parity."""
    there = ~labels.isnan()
    ids, labels = ids[there] + 1, labels[there].double()  # from 0 up: an empty list has the id -1
    if len(labels) == 0 or not 0 < labels.sum() < len(labels):
        return math.nan
    base, size = labels.mean(), int(ids.max()) + 1
    scores = torch.empty_like(labels)
    for parity in (0, 1):
        own, other = slice(parity, None, 2), slice(1 - parity, None, 2)
        rows = torch.bincount(ids[other], minlength=size).double()
        positives = torch.bincount(ids[other], weights=labels[other], minlength=size)
        means = (positives + _SMOOTHING * base) / (rows + _SMOOTHING)
        scores[own] = means[ids[own]]
    return float(auc(scores, labels))
