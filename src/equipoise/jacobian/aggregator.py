"""The base of aggregators that know their tasks: preferences, and a state from earlier steps with rows per task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from equipoise.preferences import preference_factors

__all__ = ["Kind", "Plain", "TaskAggregator", "WeighingAggregator", "in_order", "put_back", "rows_of"]

Kind = Literal["task", "pair", "share"]
"""The meaning of a state tensor's dimensions.

- ``"task"``: the first has one row per task.
- ``"pair"``: the first two have one entry per pair of tasks.
- ``"share"``: shape [M], a point of the simplex. The shares of the present tasks are scaled to the sum 1 for a step,
  and back to their old sum after it.
"""


class TaskAggregator(ABC):
    """From the Jacobian of the present tasks to one gradient, with preferences and a state from earlier steps.

    :class:`equipoise.jacobian.JacobianDescent` keeps the state: it saves it in checkpoints, matches it by the tasks'
    names, and hands over the rows of the present tasks alone. The others' do not move.

    Args:
        task_weights: the user's preferences, one positive number per task; None: all equal.

    Attributes:
        kept: of each state tensor, what its dimensions mean; empty without a state.
        keeps_vectors: True if a state tensor has one column per shared parameter. The Jacobian then has a column for
            every one of them, 0 where no task reaches it.
    """

    kept: ClassVar[Mapping[str, Kind]] = {}
    keeps_vectors: ClassVar[bool] = False

    def __init__(self, *, task_weights: Sequence[float] | None = None) -> None:
        self.task_weights = None if task_weights is None else [float(weight) for weight in task_weights]

    def begin(self, tasks: Sequence[str], /) -> None:
        """Take note of the tasks' names, in the order of the Jacobian's rows.

        Raises:
            ValueError: ``task_weights`` or another option does not fit them.
        """
        preference_factors(self.task_weights, tasks)  # refuses what is not one positive number per task

    def initial(self, tasks: int, like: Tensor, /) -> dict[str, Tensor]:
        """Return the state before the first step.

        Args:
            tasks: M.
            like: an empty tensor of shape [0, N] on the device and in the dtype of the Jacobian, N the number of all
                shared parameters.
        """
        return {}

    @abstractmethod
    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Return the joint gradient, shape [N].

        Args:
            jacobian: one finite, non-zero row per present task, shape [K, N].
            state: the rows of these tasks; it receives their new values, in new tensors.
            present: the places of these tasks.
            step: the number of aggregations before this one.
        """

    def preferences(self, present: Sequence[int], like: Tensor, /) -> Tensor | None:
        """Return the preferences of these tasks with the mean 1, shape [K], in the dtype and on the device of ``like``.

        None without preferences.
        """
        if self.task_weights is None:
            return None
        weights = [self.task_weights[task] for task in present]
        mean = sum(weights) / len(weights)
        return like.new_tensor([weight / mean for weight in weights])

    def _repr_of(self, *around: object, **options: object) -> str:
        if self.task_weights is not None:
            options["task_weights"] = self.task_weights
        words = [*map(repr, around), *(f"{name}={value!r}" for name, value in options.items())]
        return f"{type(self).__name__}({', '.join(words)})"


class WeighingAggregator(TaskAggregator):
    """An aggregator whose joint gradient is a weighted sum of the rows, ``Σ p_m w_m g_m``.

    The preferences p multiply the weights after :meth:`weigh`, which is not told of them: next to a task of preference
    1, a task of preference 9 gets 9 times the weight that it would get with equal ones. What the method promises of its
    own weights, such as no conflict, need not hold of these.
    """

    @abstractmethod
    def weigh(self, jacobian: Tensor, state: dict[str, Tensor], /, *, step: int) -> Tensor:
        """Return one weight per row, shape [K]; arguments as in :meth:`aggregate`."""

    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Return the weighted sum of the rows."""
        weights = self.weigh(jacobian, state, step=step)
        preferences = self.preferences(present, jacobian)
        return (weights if preferences is None else weights * preferences) @ jacobian


class Plain(TaskAggregator):
    """An aggregator that knows nothing of its tasks, such as most of ``torchjd.aggregation``."""

    def __init__(self, aggregator: Callable[[Tensor], Tensor], /) -> None:
        super().__init__()
        self.aggregator = aggregator

    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Return what the aggregator makes of the rows."""
        return self.aggregator(jacobian)

    def __repr__(self) -> str:
        return repr(self.aggregator)


def rows_of(kind: Kind, value: Tensor, here: Tensor) -> Tensor:
    """Return the part of a state tensor that belongs to the tasks at the places ``here``."""
    if kind == "pair":
        return value[here.unsqueeze(1), here]
    rows = value[here]
    if kind == "share":
        total = rows.sum()
        return torch.where(total > 0, rows / total, 1 / len(here))
    return rows


def put_back(kind: Kind, value: Tensor, here: Tensor, rows: Tensor) -> Tensor:
    """Return a state tensor with new rows of the tasks at the places ``here``."""
    if kind == "pair":
        return value.index_put((here.unsqueeze(1), here), rows)
    if kind == "share":
        rows = rows * value[here].sum()
    return value.index_copy(0, here, rows)


def in_order(kind: Kind, saved: Tensor, fresh: Tensor, places: Sequence[int | None]) -> Tensor:
    """Return a saved state tensor in another order of tasks; a task without a place is as it is in ``fresh``."""
    value = fresh.clone()
    known = [(place, kept) for place, kept in enumerate(places) if kept is not None]
    for place, kept in known:
        if kind == "pair":
            for other, of_other in known:
                value[place, other] = saved[kept, of_other]
        else:
            value[place] = saved[kept]
    return value / value.sum() if kind == "share" and None in places else value
