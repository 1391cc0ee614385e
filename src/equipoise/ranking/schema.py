"""What a ranking data set looks like: its features, its tasks, and one batch of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batch", "Categorical", "Numeric", "Schema", "Task"]


@dataclass(frozen=True)
class Categorical:
    """A feature whose values are ids in ``[0, cardinality)``; id 0 is kept for missing and unseen values."""

    name: str
    cardinality: int

    def __post_init__(self) -> None:
        if self.cardinality < 1:
            raise ValueError(
                f"Categorical feature {self.name!r}: cardinality must be at least 1, found {self.cardinality}."
            )


@dataclass(frozen=True)
class Numeric:
    """A feature whose values are finite floats, already brought to a scale near one."""

    name: str


@dataclass(frozen=True)
class Task:
    """A binary label to predict; in a batch 0, 1 or NaN (missing)."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class Schema:
    """The columns of a ranking data set in the order in which tensors hold them.

    Raises:
        ValueError: there is no task, or a name occurs twice.

    Example:
        >>> schema = Schema([Categorical("user", 100)], [Numeric("age")], [Task("click"), Task("like")])
        >>> schema.task_names
        ('click', 'like')
    """

    categorical: Sequence[Categorical]
    numeric: Sequence[Numeric]
    tasks: Sequence[Task]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("A schema needs at least one task, found none.")
        columns: list[Categorical | Numeric | Task] = [*self.categorical, *self.numeric, *self.tasks]
        names = [column.name for column in columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"Names in a schema must differ, found twice: {', '.join(twice)}.")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names in the order of the label columns."""
        return tuple(task.name for task in self.tasks)


@dataclass(frozen=True)
class Batch:
    """B examples as tensors on one device.

    Attributes:
        categorical: ids, int64, shape [B, number of categorical features].
        numeric: values, float32, shape [B, number of numeric features].
        labels: 0, 1 or NaN (missing), float32, shape [B, number of tasks].
        weight: how many examples of the natural distribution each row stands for, float32, shape [B].
    """

    categorical: Tensor
    numeric: Tensor
    labels: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.categorical.to(device),
            self.numeric.to(device),
            self.labels.to(device),
            self.weight.to(device),
        )
