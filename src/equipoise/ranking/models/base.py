"""What all ranking models have in common: a shared representation, a fork, and one head per task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from equipoise.schema import Schema

__all__ = ["RankingModel"]


class RankingModel(nn.Module, ABC):
    """Features → shared representation → fork → one head per task → one logit per task.

    A model says two things: :meth:`representation`, which is all that tasks share, and ``heads``, one module
    per task, which takes a branch of the representation and holds whatever belongs to that task alone.

    Args:
        schema: the features and the tasks.
        fork: called with the representation, returns one branch of the same structure per task; None: every
            head reads the representation itself.

    Attributes:
        heads: one module per task, in the schema's order.
    """

    heads: nn.ModuleList

    def __init__(self, schema: Schema, fork: nn.Module | None) -> None:
        super().__init__()
        self.schema = schema
        self.fork = fork

    @abstractmethod
    def representation(self, categorical: Tensor, numeric: Tensor) -> Any:
        """The tensor, or the tuple of tensors, through which alone the tasks reach the shared parameters."""

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """One logit per example and task.

        Args:
            categorical: ids, int64, shape [B, number of categorical features].
            numeric: values, floating point, shape [B, number of numeric features].

        Returns:
            One tensor of shape [B] per task, in the schema's order.

        Raises:
            ValueError: the fork returns another number of branches than there are tasks.
        """
        shared = self.representation(categorical, numeric)
        branches = [shared] * len(self.heads) if self.fork is None else self.fork(shared)
        if len(branches) != len(self.heads):
            raise ValueError(
                f"The fork returned {len(branches)} branches for {len(self.heads)} tasks "
                f"({', '.join(self.schema.task_names)}): construct it with the schema's tasks."
            )
        return tuple(head(branch) for head, branch in zip(self.heads, branches, strict=True))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters upstream of the fork, which every task's loss reaches."""
        own = set(self.heads.parameters())
        return (parameter for parameter in self.parameters() if parameter not in own)

    def task_parameters(self, task: str | int, /) -> Iterator[nn.Parameter]:
        """The parameters that only the loss of ``task``, a name or a position, reaches.

        Raises:
            ValueError: there is no such task.
        """
        names = self.schema.task_names
        position = names.index(task) if task in names else task
        if not isinstance(position, int) or not 0 <= position < len(names):
            raise ValueError(f"Unknown task {task!r}: expected one of {', '.join(names)} or 0 to {len(names) - 1}.")
        return self.heads[position].parameters()
