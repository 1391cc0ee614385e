"""The base of the ranking models: one logit per task, the forks, and which parameters are shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from equipoise.forks.structure import tasks_first
from equipoise.schema import Schema

__all__ = ["ForkFactory", "RankingModel", "Unforked", "refuse_fork"]

ForkFactory = Callable[[], nn.Module]
"""Builds a new fork for the model's tasks: a module that returns one copy of its input per task."""


def refuse_fork(factory: object, /) -> None:
    """Refuse a fork in the place of a function that builds one.

    Raises:
        TypeError: it is a module.
    """
    if isinstance(factory, nn.Module):
        raise TypeError(
            f"Expected a function that builds a fork, found a {type(factory).__name__} module. A model may need "
            "several forks: pass for example `fork=lambda: MultiBalance(schema.task_names)`."
        )


class Unforked(nn.Module):
    """Takes the place of a fork: hands the shared tensors to each task, and lets the tasks' gradients add up.

    Example:
        >>> Unforked(2)("shared")
        ('shared', 'shared')
    """

    def __init__(self, tasks: int, /) -> None:
        super().__init__()
        self.tasks = tasks

    def forward(self, shared: Any, /) -> tuple[Any, ...]:
        """Return ``shared`` once per task."""
        return (shared,) * self.tasks

    def stacked(self, shared: Any, /) -> Any:
        """Return the shared tensors with a first dimension of tasks, as :meth:`equipoise.Fork.stacked` does."""
        return tasks_first(shared, self.tasks)

    def _load_from_state_dict(self, *_: Any) -> None:
        """Leave out the state of a fork that stood here, so that a model with a fork loads into one without it."""


class RankingModel(nn.Module, ABC):
    """Predicts one logit per task and owns the forks at which the tasks' gradients meet.

    A subclass calls :meth:`new_fork` once for every fork it needs, keeps each as a submodule (``self.fork`` where
    there is one), and puts every module that serves one task alone into ``heads``. All other parameters are shared:
    they must lie upstream of the forks, so that every path from a task's loss to them crosses exactly one fork.

    Args:
        schema: the features and the tasks.

    Attributes:
        heads: one module per task, in the schema's order, with all parameters that only this task's loss reaches.

    Example:
        >>> import torch
        >>> from equipoise.schema import Categorical, Numeric, Schema, Task
        >>> class Linear(RankingModel):
        ...     def __init__(self, schema, *, fork=None):
        ...         super().__init__(schema)
        ...         self.fork = self.new_fork(fork)
        ...         self.shared = nn.Linear(len(schema.numeric), 4)
        ...         self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in schema.tasks)
        ...     def forward(self, categorical, numeric):
        ...         branches = self.branches(self.fork, self.shared(numeric))
        ...         return tuple(head(branch).squeeze(1) for head, branch in zip(self.heads, branches))
        >>> model = Linear(Schema([], [Numeric("age")], [Task("click"), Task("like")]))
        >>> [parameter.shape for parameter in model.shared_parameters()]
        [torch.Size([4, 1]), torch.Size([4])]
    """

    heads: nn.ModuleList

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema

    @abstractmethod
    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """Predict one logit per example and task.

        Args:
            categorical: ids, int64, shape [B, number of categorical features].
            numeric: values, floating point, shape [B, number of numeric features].

        Returns:
            One tensor of shape [B] per task, in the schema's order.
        """

    def auxiliary_losses(self, labels: Tensor, /) -> Mapping[str, Tensor] | None:
        """Return further losses of some tasks for the rows of the last forward pass in training mode; None: none.

        Call it once after each forward pass and hand the result to :func:`equipoise.ranking.losses.task_losses`;
        ``train`` and ``compare`` do so. The loss of a task must reach no parameter that belongs to another task, so it
        may read the outputs of other tasks only detached.

        Args:
            labels: as for ``task_losses``, shape [B, number of tasks].

        Returns:
            By the task's name one loss per row, shape [B].
        """
        return None

    def new_fork(self, factory: ForkFactory | None, /) -> nn.Module:
        """Build one fork; without a factory an :class:`Unforked`, which lets gradients add up.

        Raises:
            TypeError: ``factory`` is a fork itself.
        """
        refuse_fork(factory)
        return Unforked(len(self.schema.tasks)) if factory is None else factory()

    def branches(self, fork: nn.Module, shared: Any, /) -> Sequence[Any]:
        """Return one copy of ``shared``, a tensor or a structure of tensors, per task, in the schema's order.

        Raises:
            ValueError: the fork returns another number of branches than there are tasks.
        """
        names = self.schema.task_names
        found: Sequence[Any] = fork(shared)
        if len(found) != len(names):
            raise ValueError(
                f"The fork returned {len(found)} branches for {len(names)} tasks ({', '.join(names)}): construct it "
                "with the schema's tasks."
            )
        return found

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters upstream of the forks, which the losses of several tasks reach."""
        own = set(self.heads.parameters())
        return (parameter for parameter in self.parameters() if parameter not in own)

    def task_parameters(self, task: str | int, /) -> Iterator[nn.Parameter]:
        """Return the parameters that only the loss of ``task``, a name or a position, reaches.

        Raises:
            ValueError: there is no such task.
        """
        names = self.schema.task_names
        position = names.index(task) if task in names else task
        if not isinstance(position, int) or not 0 <= position < len(names):
            raise ValueError(f"Unknown task {task!r}: expected one of {', '.join(names)} or 0 to {len(names) - 1}.")
        return self.heads[position].parameters()
