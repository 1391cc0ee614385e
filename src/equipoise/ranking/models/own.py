"""Models of somebody else, brought to the form that training reads, with a fork placed where they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from equipoise.schema import Schema

__all__ = ["OwnModel", "outputs_by_task", "says_where_to_fork"]


class OwnModel(nn.Module):
    """Calls a model that returns its outputs in any form, or that says where its fork belongs.

    Args:
        model: the model as its author wrote it.
        schema: the tasks.
        fork: stands between ``model.representation(categorical, numeric)`` and ``model.heads``, see
            :func:`says_where_to_fork`; None: ``model(categorical, numeric)`` is called.

    Example:
        >>> import torch
        >>> from equipoise import MultiBalance
        >>> from equipoise.schema import Numeric, Task
        >>> class Towers(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.bottom = nn.Linear(1, 4)
        ...         self.heads = nn.ModuleDict({"click": nn.Linear(4, 1), "like": nn.Linear(4, 1)})
        ...     def representation(self, categorical, numeric):
        ...         return self.bottom(numeric)
        >>> schema = Schema([], [Numeric("age")], [Task("click"), Task("like")])
        >>> model = OwnModel(Towers(), schema, MultiBalance(schema.task_names))
        >>> [output.shape for output in model(torch.empty(3, 0), torch.ones(3, 1))]
        [torch.Size([3]), torch.Size([3])]
    """

    def __init__(self, model: nn.Module, schema: Schema, fork: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.fork = fork
        self._tasks = schema.task_names

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """Return one output per task, shape [B] each, in the schema's order."""
        if self.fork is None:
            return outputs_by_task(self.model(categorical, numeric), self._tasks)
        model: Any = self.model
        heads = [model.heads[task] for task in self._tasks] if isinstance(model.heads, nn.ModuleDict) else model.heads
        branches = self.fork(model.representation(categorical, numeric))
        found = [head(branch) for head, branch in zip(heads, branches, strict=True)]
        return outputs_by_task(found, self._tasks)

    def auxiliary_losses(self, labels: Tensor, /) -> Mapping[str, Tensor] | None:
        """Return those of the model, if it has any; see :meth:`RankingModel.auxiliary_losses`."""
        own: Callable[[Tensor], Mapping[str, Tensor] | None] | None
        own = getattr(self.model, "auxiliary_losses", None)
        return None if own is None else own(labels)


def says_where_to_fork(model: nn.Module, /) -> bool:
    """Return whether a model says where its fork belongs.

    It does so by ``representation(categorical, numeric)``, which returns what all tasks read, a tensor or a structure
    of tensors, and by ``heads``, a ``ModuleDict`` by task or a ``ModuleList`` in the order of the tasks, each called
    with what ``representation`` returns.
    """
    heads = getattr(model, "heads", None)
    return callable(getattr(model, "representation", None)) and isinstance(heads, nn.ModuleDict | nn.ModuleList)


def outputs_by_task(found: Any, tasks: Sequence[str], /) -> tuple[Tensor, ...]:
    """Return a model's outputs as one tensor of shape [B] per task.

    Args:
        found: a sequence in the order of the tasks or a mapping by task, of tensors of shape [B] or [B, 1]; or one
            tensor of shape [B, tasks].

    Example:
        >>> import torch
        >>> outputs_by_task({"like": torch.ones(1), "click": torch.zeros(1, 1)}, ["click", "like"])
        (tensor([0.]), tensor([1.]))
    """
    if isinstance(found, Mapping):
        found = [found[task] for task in tasks]
    elif isinstance(found, Tensor):
        found = found.unbind(1)
    return tuple(output.squeeze(1) if output.dim() == 2 else output for output in found)
