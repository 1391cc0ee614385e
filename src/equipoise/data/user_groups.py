"""Groups of users by how many train rows they have: a model may serve those it knows well at others' cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from equipoise.data.dataset import Dataset, Split

__all__ = ["ACTIVITY", "ACTIVITY_NAMES", "with_activity"]

ACTIVITY: Final = "activity"
"""The key of a split that holds the activity of the user of each row: a place in :data:`ACTIVITY_NAMES`."""

ACTIVITY_NAMES: Final[Sequence[str]] = (
    "no train row", "least active quarter", "second quarter", "third quarter", "most active quarter",
)  # fmt: skip
"""Quarters of the users that have train rows, by their number of train rows; users with equally many stay together."""


def with_activity(dataset: Dataset, /) -> Dataset:
    """Return the data set in memory with the activity of its users as a slice that describes users.

    Args:
        dataset: in memory, with a user (``group``) that every split has as a key.

    Raises:
        TypeError: a split is not in memory.
        ValueError: the data set names no user.

    Example:
        >>> from equipoise.schema import Numeric, Schema, Task
        >>> def split(*users: int) -> Split:
        ...     rows, codes = len(users), torch.tensor(users)
        ...     labels = torch.zeros(rows, 1)
        ...     return Split(
        ...         torch.empty(rows, 0, dtype=torch.int32), torch.zeros(rows, 1), labels, torch.ones(rows),
        ...         keys={"user": codes},
        ...     )
        >>> columns = Schema([], [Numeric("age")], [Task("visit")])
        >>> toy = Dataset("toy", columns, split(1, 2, 2, 3, 3, 3, 4, 4, 4, 4), split(1), split(1, 4, 9), group="user")
        >>> found = with_activity(toy)
        >>> [ACTIVITY_NAMES[code] for code in found.test.keys["activity"].tolist()]
        ['least active quarter', 'most active quarter', 'no train row']
        >>> found.user_groups
        ('activity',)
    """
    if not dataset.group:
        raise ValueError(f"{dataset.name}: the activity of users needs the key that tells users apart, found none.")
    splits = []
    for split in (dataset.train, dataset.validation, dataset.test):
        if not isinstance(split, Split):
            raise TypeError(f"{dataset.name}: expected splits in memory, found a {type(split).__name__}.")
        splits.append(split)
    users = [split.keys[dataset.group] for split in splits]
    known, place = torch.unique(torch.cat(users), return_inverse=True)
    counts = torch.bincount(place[: len(users[0])], minlength=len(known))
    active = counts[counts > 0].double()
    limits = active.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    codes = torch.where(counts > 0, 1 + torch.bucketize(counts.double(), limits), 0)[place]
    parts = torch.split(codes, [len(split) for split in splits])
    train, validation, test = (
        replace(split, keys={**split.keys, ACTIVITY: part}) for split, part in zip(splits, parts, strict=True)
    )
    return replace(
        dataset, train=train, validation=validation, test=test,
        values={**dataset.values, ACTIVITY: ACTIVITY_NAMES},
        slices=(*dataset.slices, ACTIVITY), user_groups=(*dataset.user_groups, ACTIVITY),
    )  # fmt: skip
