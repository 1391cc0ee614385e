"""The base of forks that weigh the tasks by the user's preferences as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.fork import Fork
from equipoise.preferences import preference_factors

__all__ = ["Preferring"]


class Preferring(Fork):
    """A fork with preferences among the tasks; a subclass says in its docstring what a preference decides.

    Args:
        tasks: the tasks' names, or how many there are.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.
        gram_every: measure the Gram matrix in one step out of so many, see :class:`Fork`.

    Attributes:
        task_weights: the preferences as given.
        preferences: the preferences divided by their mean, shape [M].

    Raises:
        ValueError: ``task_weights`` are not one positive number per task.
    """

    preferences: Tensor

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        task_weights: Sequence[float] | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(tasks, process_group=process_group, overlap=overlap, gram_every=gram_every)
        self._factors = preference_factors(task_weights, self.tasks)
        self.task_weights = None if task_weights is None else [float(weight) for weight in task_weights]
        self.preferences = torch.empty_like(self.last_weights)
        Preferring.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`Fork.reset_parameters`."""
        super().reset_parameters()
        self.preferences.copy_(torch.tensor(self._factors, dtype=self.preferences.dtype))

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        preferring = "" if self.task_weights is None else f", task_weights={self.task_weights}"
        return f"{super().extra_repr()}{preferring}"
