"""The columns of a ranking data set: features, tasks, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        """Names of the tasks, in the order of the label columns."""
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

    def check(self, schema: Schema, /) -> None:
        """Refuse values that the schema does not allow; waits for the device.

        For debugging, and for batches from elsewhere: a :class:`equipoise.data.Dataset` has been checked.

        Raises:
            ValueError: a number of columns differs from the schema's, an id lies outside its feature's range, a number
                is not finite, a label is none of 0, 1 and NaN, or a weight is negative or not finite. The message
                names the column, the count and the first such value.

        Example:
            >>> schema = Schema([Categorical("user", 9)], [], [Task("click")])
            >>> ids, labels = torch.tensor([[3], [9]]), torch.tensor([[1.0], [0.0]])
            >>> Batch(ids, torch.empty(2, 0), labels, torch.ones(2)).check(schema)
            Traceback (most recent call last):
            ValueError: categorical features: column 'user' should hold ids from 0 to 8, found 1 others in 2 rows, \
the first 9.
        """
        sizes = torch.tensor([feature.cardinality for feature in schema.categorical], device=self.labels.device)
        _check_columns(
            "categorical features",
            self.categorical,
            {feature.name: f"ids from 0 to {feature.cardinality - 1}" for feature in schema.categorical},
            lambda ids: (ids < 0) | (ids >= sizes),
        )
        _check_columns(
            "numeric features",
            self.numeric,
            {feature.name: "finite numbers" for feature in schema.numeric},
            lambda values: values - values != 0,  # infinite or NaN, four times as fast as isfinite
        )
        _check_columns(
            "labels",
            self.labels,
            {task.name: "0, 1 or NaN (missing)" for task in schema.tasks},
            lambda labels: (labels * labels - labels != 0) & ~labels.isnan(),
        )
        _check_columns(
            "weights",
            self.weight[:, None],
            {"weight": "finite numbers from 0 up"},
            lambda weight: (weight < 0) | (weight - weight != 0),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return Batch(
            self.categorical.to(device),
            self.numeric.to(device),
            self.labels.to(device),
            self.weight.to(device),
        )


def _check_columns(
    where: str, values: Tensor, expected: Mapping[str, str], is_wrong: Callable[[Tensor], Tensor]
) -> None:
    """Look at the whole matrix at once: column by column takes three times as long."""
    if values.shape[1] != len(expected):
        raise ValueError(
            f"{where}: expected the {len(expected)} columns of the schema ({', '.join(expected)}), found "
            f"{values.shape[1]}."
        )
    wrong = is_wrong(values)
    if wrong.any():
        counts = wrong.sum(0)
        column = int(counts.argmax())
        name = list(expected)[column]
        first = values[:, column][wrong[:, column]][0].item()
        raise ValueError(
            f"{where}: column {name!r} should hold {expected[name]}, found {int(counts[column])} others in "
            f"{len(values)} rows, the first {first}."
        )
