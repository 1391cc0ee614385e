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
        _check_name(self)
        if type(self.cardinality) is not int or self.cardinality < 1:
            raise ValueError(
                f"Categorical feature {self.name!r}: cardinality must be a whole number of at least 1, found "
                f"{self.cardinality!r}."
            )


@dataclass(frozen=True)
class Numeric:
    """A feature whose values are finite floats, already brought to a scale near one."""

    name: str

    def __post_init__(self) -> None:
        _check_name(self)


@dataclass(frozen=True)
class Task:
    """A binary label to predict; in a batch 0, 1 or NaN (missing)."""

    name: str
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self)


@dataclass(frozen=True)
class Schema:
    """The columns of a ranking data set in the order in which tensors hold them.

    Raises:
        ValueError: there is no task, a name occurs twice, or a column is of another kind than its place.

    Example:
        >>> schema = Schema([Categorical("user", 100)], [Numeric("age")], [Task("click"), Task("like")])
        >>> schema.task_names
        ('click', 'like')
    """

    categorical: Sequence[Categorical]
    numeric: Sequence[Numeric]
    tasks: Sequence[Task]

    def __post_init__(self) -> None:
        for kind, place in ((Categorical, self.categorical), (Numeric, self.numeric), (Task, self.tasks)):
            if other := [column for column in place if not isinstance(column, kind)]:
                raise ValueError(f"Expected {kind.__name__}(...) there in a schema, found {other[0]!r}.")
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


def _check_name(column: Categorical | Numeric | Task) -> None:
    if not isinstance(column.name, str) or not column.name:
        raise ValueError(f"{type(column).__name__}: expected a name that is not empty, found {column.name!r}.")


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
