"""Checks of encoded train rows: features that say nothing, and features that are a label in another form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from equipoise.data.dataset import Split
from equipoise.errors import DataError
from equipoise.schema import Schema

__all__ = ["constant_features", "refuse_answers"]

_SAMPLE = 100_000  # rows that are looked at first
_LEAST = 10  # rows of each label value, below which a match may be chance
_MOST_IDS = 64  # features of more ids match a small label by chance
_SAME = 1 - 1e-9


def constant_features(train: Split, schema: Schema, /) -> Iterator[str]:
    """Yield a note on each feature that has one value in all train rows, and so teaches nothing."""
    for names, matrix in ((schema.categorical_columns, train.categorical), (schema.numeric_columns, train.numeric)):
        if not names:
            continue
        varies = (matrix.amin(0) != matrix.amax(0)).tolist()
        by_feature: dict[str, bool] = {}
        for name, one in zip(names, varies, strict=True):
            feature = name.partition("[")[0]
            by_feature[feature] = by_feature.get(feature, False) or one
        for feature, found in by_feature.items():
            if not found:
                yield f"The feature {feature} has one value in all train rows: leave it out."


def refuse_answers(train: Split, schema: Schema, /) -> None:
    """Refuse a feature from which a label follows exactly, such as the label's own column under another name.

    Raises:
        DataError: there is one.
    """
    for i, task in enumerate(schema.tasks):
        for rows in (_SAMPLE, len(train)):
            labels = train.labels[:rows, i].double().numpy()
            there = ~np.isnan(labels)
            found = list(_answers(labels[there], train, schema, there, rows))
            if not found:
                break
        else:
            raise DataError(
                f"The feature {found[0].partition('[')[0]!r} gives the label of the task {task.name!r} exactly, in all "
                f"{int(there.sum()):,} train rows that have one: the model would see the answer. Leave the feature out."
            )


def _answers(
    labels: NDArray[np.float64], train: Split, schema: Schema, there: NDArray[np.bool_], rows: int
) -> Iterator[str]:
    """Yield the features that determine the labels in the first rows."""
    values, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_binary = len(values) == 2
    if len(values) < 2 or (is_binary and counts.min() < _LEAST) or len(labels) < 2 * _LEAST:
        return
    centred = labels - labels.mean()
    for place, name in enumerate(schema.numeric_columns):
        column = train.numeric[:rows, place].double().numpy()[there]
        column = column - column.mean()
        norms = np.linalg.norm(column) * np.linalg.norm(centred)
        if norms > 0 and abs(column @ centred) > _SAME * norms:
            yield name
    for place, name in enumerate(schema.categorical_columns):
        ids = train.categorical[:rows, place].numpy()[there]
        if is_binary and ids.min() >= 0 and ids.max() < _MOST_IDS:
            together = np.bincount(ids * 2 + codes, minlength=2 * _MOST_IDS).reshape(-1, 2)
            if (together > 0).sum(1).max() == 1:
                yield name
