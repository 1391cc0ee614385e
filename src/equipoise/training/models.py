"""Several models as one: each gives the outputs of the tasks that it learns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["ModelsByTask"]


class ModelsByTask(nn.Module):
    """Takes each task's output from the model that learns it: from one model, or one per task.

    Args:
        models: each returns one output of shape [B] per task, in the order of ``tasks``.
        groups: the tasks that each model learns.
        tasks: the names of all tasks.

    Example:
        >>> import torch
        >>> class Shifted(nn.Module):
        ...     def __init__(self, by):
        ...         super().__init__()
        ...         self.by = by
        ...     def forward(self, categorical, numeric):
        ...         return numeric[:, 0] + self.by, numeric[:, 0] - self.by
        >>> both = ModelsByTask([Shifted(1), Shifted(2)], [["like"], ["click"]], ["click", "like"])
        >>> both(torch.empty(1, 0), torch.zeros(1, 1))
        (tensor([2.]), tensor([-1.]))
    """

    def __init__(self, models: Sequence[nn.Module], groups: Sequence[Sequence[str]], tasks: Sequence[str]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self._places = [(next(i for i, group in enumerate(groups) if task in group), task) for task in tasks]
        self._tasks = list(tasks)

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """Return one output per task, shape [B] each."""
        outputs = [model(categorical, numeric) for model in self.models]
        return tuple(outputs[model][place] for place, (model, _) in enumerate(self._places))
