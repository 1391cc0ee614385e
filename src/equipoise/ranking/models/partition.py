"""The parameters of a model by task: shared, or of one task, as the model states or its graph shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from equipoise.errors import SettingError
from equipoise.ranking.models.own import OwnModel
from equipoise.ranking.models.trial import trial_outputs
from equipoise.reachability import leaves_reached, shared_leaves
from equipoise.schema import Schema

__all__ = ["Partition", "partition_of"]


@runtime_checkable
class _StatesPartition(Protocol):
    def shared_parameters(self) -> Iterable[nn.Parameter]: ...

    def task_parameters(self, task: str, /) -> Iterable[nn.Parameter]: ...


@dataclass(frozen=True)
class Partition:
    """The parameters of a model by the tasks whose losses reach them.

    They are held by name, so that a partition stays valid when spreading a model over ranks replaces its parameters.

    Attributes:
        own: task -> names of the parameters that its loss alone reaches.
        unused: names of the parameters that no loss reaches.
        sliced: names of the parameters that hold a slice per task, as those of batched towers.
    """

    own: Mapping[str, frozenset[str]]
    unused: frozenset[str] = frozenset()
    sliced: frozenset[str] = frozenset()

    def shared_parameters(self, model: nn.Module, /) -> list[nn.Parameter]:
        """Return the parameters of ``model`` that the losses of several tasks reach."""
        others = self.unused.union(self.sliced, *self.own.values())
        return [parameter for name, parameter in model.named_parameters() if name not in others]

    def task_parameters(self, model: nn.Module, task: str, /) -> list[nn.Parameter]:
        """Return the parameters of ``model`` that the loss of ``task`` alone reaches."""
        return [parameter for name, parameter in model.named_parameters() if name in self.own[task]]


def partition_of(model: nn.Module, schema: Schema, /) -> Partition:
    """Return the partition that the model states, else the one that its graph shows.

    A model states it by ``shared_parameters()`` and ``task_parameters(task)``, as :class:`RankingModel` does. For any
    other module a few rows are predicted, and the graph is followed from each task's logits.

    Raises:
        SettingError: the model fails on these rows, or its graph hides parameters.

    Example:
        >>> from equipoise.schema import Numeric, Task
        >>> class Towers(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.bottom, self.click, self.like = nn.Linear(1, 4), nn.Linear(4, 1), nn.Linear(4, 1)
        ...     def forward(self, categorical, numeric):
        ...         z = self.bottom(numeric)
        ...         return self.click(z).squeeze(1), self.like(z).squeeze(1)
        >>> found = partition_of(Towers(), Schema([], [Numeric("age")], [Task("click"), Task("like")]))
        >>> sorted(found.own["like"])
        ['like.bias', 'like.weight']
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    stated = model.model if isinstance(model, OwnModel) else model
    if isinstance(stated, _StatesPartition):
        own = {task: frozenset(names[id(p)] for p in stated.task_parameters(task)) for task in schema.task_names}
        shared = {names[id(parameter)] for parameter in stated.shared_parameters()}
        return Partition(own, frozenset(names.values()).difference(shared, *own.values()))
    with torch.enable_grad():
        try:
            losses = [output.sum() for output in trial_outputs(model, schema)]
            reached, shared_by_some = leaves_reached(losses), shared_leaves(losses)
        except RuntimeError as error:
            raise SettingError(
                f"Cannot tell which parameters of {type(model).__name__} the tasks share: {error} Or give the model "
                "the methods shared_parameters() and task_parameters(task)."
            ) from error
    tasks_of: dict[str, set[str]] = {name: set() for name in names.values()}
    for task, leaves in zip(schema.task_names, reached, strict=True):
        for leaf in leaves:
            if id(leaf) in names:
                tasks_of[names[id(leaf)]].add(task)
    several = frozenset(name for name, by in tasks_of.items() if len(by) > 1)
    return Partition(
        {task: frozenset(name for name, by in tasks_of.items() if by == {task}) for task in schema.task_names},
        frozenset(name for name, by in tasks_of.items() if not by),
        several.difference(names[id(leaf)] for leaf in shared_by_some if id(leaf) in names),
    )
