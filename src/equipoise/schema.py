"""The columns of a ranking data set: features, tasks, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

__all__ = ["PADDING", "Batch", "Categorical", "Categories", "Numeric", "Pooling", "Sampled", "Schema", "Task", "Vector"]

PADDING: Final = -1
"""The id that fills a row of :class:`Categories` with fewer items than its length."""

Pooling = Literal["mean", "sum", "attention"]
"""mean, sum: of the items' embeddings; attention: their sum weighted by an attention unit that sees a target (DIN)."""


@dataclass(frozen=True)
class Categorical:
    """A feature whose values are ids in ``[0, cardinality)``; id 0 is kept for missing and unseen values.

    Attributes:
        table: the feature whose embedding table it reads; its own if empty.
    """

    name: str
    cardinality: int
    table: str = ""

    def __post_init__(self) -> None:
        _check_name(self)
        _check_count(self, "cardinality", self.cardinality)


@dataclass(frozen=True)
class Categories:
    """A feature of up to ``length`` ids per row: a set of values, or the last items of a sequence, newest last.

    It takes ``length`` columns of a batch, filled with :data:`PADDING` at the end; id 0 is kept for unseen values.

    Attributes:
        pooling: how the embeddings of a row's items become one; a row without items gives zeros.
        target: the feature that attention compares the items with; only for the pooling "attention".
        table: the feature whose embedding table it reads; its own if empty.
    """

    name: str
    cardinality: int
    length: int
    pooling: Pooling = "mean"
    target: str = ""
    table: str = ""

    def __post_init__(self) -> None:
        _check_name(self)
        _check_count(self, "cardinality", self.cardinality)
        _check_count(self, "length", self.length)
        if (self.pooling == "attention") != bool(self.target):
            raise ValueError(
                f"Categories feature {self.name!r}: a target goes with the pooling 'attention' and only with it, found "
                f"pooling {self.pooling!r} and target {self.target!r}."
            )


@dataclass(frozen=True)
class Numeric:
    """A feature whose values are finite floats, already brought to a scale near one."""

    name: str

    def __post_init__(self) -> None:
        _check_name(self)


@dataclass(frozen=True)
class Vector:
    """A feature of ``width`` finite floats, such as a pretrained embedding."""

    name: str
    width: int

    def __post_init__(self) -> None:
        _check_name(self)
        _check_count(self, "width", self.width)


@dataclass(frozen=True)
class Task:
    """A label to predict: binary (0, 1 or NaN for missing), or a number to regress (finite, or NaN for missing).

    Attributes:
        kind: "binary": a model's output is a logit; "regression": it is the standardised target.
        loss: of a regression: "squared", "huber", or "log", the squared error of log(1 + target).
        mean, scale: what standardises a regression's targets (after the logarithm, for "log"): of the train rows.
        positive_weight: what the loss of a positive label is multiplied with; binary tasks only.
        after: the task that this one is nested in, as a conversion in a click; none if empty.
        over: the rows that carry the label of a nested task: "parent": those whose parent is 1, so that the model
            predicts the label given the parent; "all": every row, with 0 where the parent is 0.
    """

    name: str
    description: str = ""
    kind: Literal["binary", "regression"] = "binary"
    loss: Literal["squared", "huber", "log"] = "squared"
    mean: float = 0.0
    scale: float = 1.0
    positive_weight: float = 1.0
    after: str = ""
    over: Literal["parent", "all"] = "parent"

    def __post_init__(self) -> None:
        _check_name(self)
        for name, value, least in (("mean", self.mean, -math.inf), ("scale", self.scale, 0.0),
                                   ("positive_weight", self.positive_weight, 0.0)):  # fmt: skip
            if not (math.isfinite(value) and value > least):
                raise ValueError(f"Task {self.name!r}: {name} must be finite and above {least:g}, found {value!r}.")

    @property
    def binary(self) -> bool:
        """True if the labels are 0 and 1."""
        return self.kind == "binary"


@dataclass(frozen=True)
class Sampled:
    """Negative sampling: rows without a positive of ``task`` were kept with probability ``rate``, all others whole."""

    task: str
    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"Sampled: the rate must be above 0 and at most 1, found {self.rate!r}.")


@dataclass(frozen=True)
class Schema:
    """The columns of a ranking data set in the order in which tensors hold them.

    Attributes:
        categorical: features of ids; :class:`Categories` take several columns of ``Batch.categorical``.
        numeric: features of floats; a :class:`Vector` takes several columns of ``Batch.numeric``.
        sampled: how the rows were sampled, if they were.

    Raises:
        ValueError: there is no task, a name occurs twice, a column is of another kind than its place, or a name that a
            column refers to (table, target, after, sampled task) is not there.

    Example:
        >>> schema = Schema([Categorical("user", 100)], [Numeric("age")], [Task("click"), Task("like")])
        >>> schema.task_names
        ('click', 'like')
    """

    categorical: Sequence[Categorical | Categories]
    numeric: Sequence[Numeric | Vector]
    tasks: Sequence[Task]
    sampled: Sampled | None = None

    def __post_init__(self) -> None:
        kinds: tuple[tuple[tuple[type, ...], Sequence[object]], ...] = (
            ((Categorical, Categories), self.categorical),
            ((Numeric, Vector), self.numeric),
            ((Task,), self.tasks),
        )
        for allowed, place in kinds:
            if other := [column for column in place if not isinstance(column, allowed)]:
                names = " or ".join(f"{kind.__name__}(...)" for kind in allowed)
                raise ValueError(f"Expected {names} there in a schema, found {other[0]!r}.")
        if not self.tasks:
            raise ValueError("A schema needs at least one task, found none.")
        names_of = [column.name for column in (*self.categorical, *self.numeric, *self.tasks)]
        twice = sorted({name for name in names_of if names_of.count(name) > 1})
        if twice:
            raise ValueError(f"Names in a schema must differ, found twice: {', '.join(twice)}.")
        self._check_tables()
        self._check_tasks()

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the label columns."""
        return tuple(task.name for task in self.tasks)

    @property
    def categorical_columns(self) -> tuple[str, ...]:
        """Names of the columns of ``Batch.categorical``: a feature's own, or with a place, ``name[0]``."""
        return tuple(
            column
            for feature in self.categorical
            for column in (
                _numbered(feature.name, feature.length) if isinstance(feature, Categories) else [feature.name]
            )
        )

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        """Names of the columns of ``Batch.numeric``: a feature's own, or with a place, ``name[0]``."""
        return tuple(
            column
            for feature in self.numeric
            for column in (_numbered(feature.name, feature.width) if isinstance(feature, Vector) else [feature.name])
        )

    def feature(self, name: str, /) -> Categorical | Categories | Numeric | Vector:
        """Return the feature of that name.

        Raises:
            ValueError: there is none.
        """
        for feature in (*self.categorical, *self.numeric):
            if feature.name == name:
                return feature
        names = ", ".join(feature.name for feature in (*self.categorical, *self.numeric))
        raise ValueError(f"Expected a feature out of {names}; found {name!r}.")

    def task(self, name: str, /) -> Task:
        """Return the task of that name.

        Raises:
            ValueError: there is none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"Expected a task out of {', '.join(self.task_names)}; found {name!r}.")

    def _check_tables(self) -> None:
        features = {feature.name: feature for feature in self.categorical}
        for feature in self.categorical:
            owner = features.get(feature.table) if feature.table else feature
            if owner is None or owner.table or owner.cardinality != feature.cardinality:
                raise ValueError(
                    f"Feature {feature.name!r}: table should name a categorical feature with a table of its own and "
                    f"the same cardinality ({feature.cardinality}), found {feature.table!r}."
                )
            target = feature.target if isinstance(feature, Categories) else ""
            if target and not isinstance(features.get(target), Categorical):
                raise ValueError(
                    f"Feature {feature.name!r}: target should name a feature with one id per row, found {target!r}."
                )

    def _check_tasks(self) -> None:
        tasks = {task.name: task for task in self.tasks}
        for task in self.tasks:
            ancestors = [task.name]
            while after := tasks[ancestors[-1]].after:
                if after not in tasks or not tasks[after].binary or after in ancestors:
                    raise ValueError(
                        f"Task {ancestors[-1]!r}: after should name another binary task, found {after!r}"
                        f"{', which comes after it' if after in ancestors else ''}."
                    )
                ancestors.append(after)
        if self.sampled is not None and not (self.sampled.task in tasks and tasks[self.sampled.task].binary):
            raise ValueError(f"Sampled: expected a binary task of the schema, found {self.sampled.task!r}.")


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}[{place}]" for place in range(count)]


def _check_name(column: Categorical | Categories | Numeric | Vector | Task) -> None:
    if not isinstance(column.name, str) or not column.name:
        raise ValueError(f"{type(column).__name__}: expected a name that is not empty, found {column.name!r}.")


def _check_count(column: Categorical | Categories | Vector, what: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(
            f"{type(column).__name__} feature {column.name!r}: {what} must be a whole number of at least 1, found "
            f"{value!r}."
        )


@dataclass(frozen=True)
class Batch:
    """B examples as tensors on one device.

    Attributes:
        categorical: ids, int64, shape [B, columns]; the columns are ``schema.categorical_columns``.
        numeric: values, float32, shape [B, columns]; the columns are ``schema.numeric_columns``.
        labels: of binary tasks 0, 1 or NaN (missing), of regressions finite or NaN; float32, shape [B, tasks].
        weight: how many examples of the natural distribution each row stands for, float32, shape [B].
        importance: what each row counts in the losses and metrics, float32, shape [B]; None: 1 each.
    """

    categorical: Tensor
    numeric: Tensor
    labels: Tensor
    weight: Tensor
    importance: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, rows: slice | Tensor, /) -> Batch:
        """Return some of the rows, as a slice or by index."""
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the same batch on another device."""
        return self._each(lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the same batch in pinned memory, from which copies to a device need not wait."""
        return self._each(lambda column: column.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            categorical=change(self.categorical),
            numeric=change(self.numeric),
            labels=change(self.labels),
            weight=change(self.weight),
            importance=None if self.importance is None else change(self.importance),
        )

    def check(self, schema: Schema, /) -> None:
        """Refuse values that the schema does not allow; waits for the device.

        For debugging, and for batches from elsewhere: a :class:`equipoise.data.Dataset` has been checked.

        Raises:
            ValueError: a number of columns differs from the schema's, an id lies outside its feature's range, a number
                is not finite, a binary task's label is none of 0, 1 and NaN, a regression's is infinite (or with the
                loss "log" not above −1), or a weight is negative or not finite. The message names the column, the
                count and the first such value.

        Example:
            >>> schema = Schema([Categorical("user", 9)], [], [Task("click")])
            >>> ids, labels = torch.tensor([[3], [9]]), torch.tensor([[1.0], [0.0]])
            >>> Batch(ids, torch.empty(2, 0), labels, torch.ones(2)).check(schema)
            Traceback (most recent call last):
            ValueError: categorical features: column 'user' should hold ids from 0 to 8, found 1 others in 2 rows, \
the first 9.
        """
        device = self.labels.device
        least: list[int] = []
        sizes: list[int] = []
        ids_of: dict[str, str] = {}
        for feature in schema.categorical:
            names, lowest, or_padding = [feature.name], 0, ""
            if isinstance(feature, Categories):
                names = _numbered(feature.name, feature.length)
                lowest, or_padding = PADDING, f", or {PADDING} at the end"
            ids_of |= dict.fromkeys(names, f"ids from 0 to {feature.cardinality - 1}{or_padding}")
            least += [lowest] * len(names)
            sizes += [feature.cardinality] * len(names)
        low, high = torch.tensor(least, device=device), torch.tensor(sizes, device=device)
        _check_columns("categorical features", self.categorical, ids_of, lambda ids: (ids < low) | (ids >= high))
        _check_columns(
            "numeric features",
            self.numeric,
            dict.fromkeys(schema.numeric_columns, "finite numbers"),
            lambda values: values - values != 0,  # infinite or NaN, four times as fast as isfinite
        )
        binary = torch.tensor([task.binary for task in schema.tasks], device=device)
        # the logarithm of 1 + label needs labels above -1
        above = torch.tensor([-1.0 if _is_logarithmic(task) else -math.inf for task in schema.tasks], device=device)
        _check_columns(
            "labels",
            self.labels,
            {
                task.name: "0, 1 or NaN (missing)"
                if task.binary
                else f"finite numbers{' above -1' if _is_logarithmic(task) else ''} or NaN (missing)"
                for task in schema.tasks
            },
            lambda labels: (
                torch.where(binary, labels * labels - labels != 0, (labels - labels != 0) | (labels <= above))
                & ~labels.isnan()
            ),
        )
        for name, weight in (("weight", self.weight), ("importance", self.importance)):
            if weight is not None:
                _check_columns(
                    "weights" if name == "weight" else "importance",
                    weight[:, None],
                    {name: "finite numbers from 0 up"},
                    lambda weight: (weight < 0) | (weight - weight != 0),
                )


def _is_logarithmic(task: Task) -> bool:
    return not task.binary and task.loss == "log"


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
