"""MetaBalance: brings the auxiliary tasks' gradients near the length of the target's, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.optim.checks import check_unwrapped
from equipoise.optim.entries import rows_index
from equipoise.optim.gradients import Pending, sum_of
from equipoise.optim.task_optimizer import TaskOptimizer
from equipoise.preferences import preference_factors

__all__ = ["MetaBalance"]


class MetaBalance(TaskOptimizer):
    """Rescales the gradients of auxiliary tasks towards the length of the target task's (He et al., WWW 2022).

    For each shared parameter tensor and each task m, with ``g_m`` the task's gradient and t the target:

        e_m ← β e_m + (1 − β) ‖g_m‖
        g_m ← g_m (r ê_t / ê_m + 1 − r),    ê_m = e_m / (1 − β^k_m)

    and the wrapped optimizer steps with the sum of the gradients (arXiv 2203.06801, strategy C: both longer and shorter
    gradients are brought near). The average holds the step under way already, as in the authors' code. The bias
    correction, k_m the number of steps in which task m has reached the tensor, is ours: where all tasks come in every
    step it changes nothing. One backward pass per task.

    Around it :class:`PUB` balances updates of the rescaled gradients: ``PUB(MetaBalance(Adam(...)))``.

    Defined for odd cases: an absent task's average does not move. Nor does that of a gradient that is zero or not
    finite. A tensor that the target has not reached so far keeps its gradients.

    Args:
        optimizer: a ``torch.optim`` SGD, Adam, AdamW, Adagrad or RMSprop over all the model's parameters, or
            :class:`Clippy` around one.
        shared: the parameters that several tasks use, or ``"auto"``; see :class:`PUB`.
        target: the name of the target task, whose gradients stay; None: the first, as in the authors' code.
        relax: r, from 0 (the plain sum) to 1 (equal lengths).
        beta: β, at least 0 and less than 1.
        tasks: the tasks' names; see :class:`PUB`.
        task_weights: preferences, one positive number per task in the order of ``tasks``, divided by their mean; they
            multiply the rescaled gradients (ours). None: all equal.
        data_parallel: see :class:`PUB`.

    Raises:
        TypeError: ``optimizer`` is none of these.
        ValueError: ``relax`` or ``beta`` is out of range, ``target`` is no task, ``task_weights`` are not one positive
            number per task, or as for :class:`PUB`.

    Example:
        >>> shared = torch.nn.Parameter(torch.zeros(2))
        >>> sgd = torch.optim.SGD([shared], lr=1.0)
        >>> optimizer = MetaBalance(sgd, shared=[shared], target="buy", tasks=["click", "buy"], relax=1.0)
        >>> optimizer.backward({"click": 100 * shared[0], "buy": shared[1]})
        >>> optimizer.step()
        >>> shared.data
        tensor([-1., -1.])
    """

    _key = "metabalance"

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        shared: Iterable[Parameter] | Literal["auto"],
        target: str | None = None,
        relax: float = 0.7,
        beta: float = 0.9,
        tasks: Sequence[str] | None = None,
        task_weights: Sequence[float] | None = None,
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> None:
        check_unwrapped(optimizer, "MetaBalance")
        self.task_weights = None if task_weights is None else [float(weight) for weight in task_weights]
        if not 0 <= relax <= 1:
            raise ValueError(f"relax must be from 0 to 1, found {relax}.")
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be at least 0 and less than 1, found {beta}.")
        self.target = target
        self.relax = relax
        self.beta = beta
        super().__init__(optimizer, shared, tasks, data_parallel)
        if not self.tasks:
            self._memory.update(self._averages(0))
        self._take_averaging_over()

    def _begin(self, tasks: tuple[str, ...]) -> None:
        if self.target is not None and self.target not in tasks:
            raise ValueError(f"target must be one of the tasks {', '.join(tasks)}, found {self.target!r}.")
        self._factors = preference_factors(self.task_weights, tasks)
        super()._begin(tasks)
        self._memory.update(self._averages(len(tasks)))

    def _settle_shared(self, shared: list[Parameter]) -> None:
        super()._settle_shared(shared)
        if self._memory["norms"].shape[1] != len(shared):
            self._memory.update(self._averages(len(self.tasks)))

    def _averages(self, count: int) -> dict[str, Tensor]:
        norms = torch.zeros(count, len(self.shared), dtype=torch.float64, device=self._device)
        return {"norms": norms, "counts": torch.zeros_like(norms)}

    def _needs_each(self) -> bool:
        return len(self.tasks) != 1

    def _move(self, pending: Pending) -> None:
        tasks = pending.tasks
        if pending.of_task and tasks:
            rows = self.rescaled([pending.of_task[task] for task in tasks], tasks)
            if self.task_weights is not None:
                rows = [
                    [None if g is None else g * self._factors[task] for g in row]
                    for task, row in zip(tasks, rows, strict=True)
                ]
            for p, *of_p in zip(self.shared, *rows, strict=True):
                p.grad = sum_of(of_p)
        self._step_all()

    def rescaled(self, gradients: Sequence[Sequence[Tensor | None]], tasks: Sequence[int]) -> list[list[Tensor | None]]:
        """Move the averages by one step, and return the rescaled gradients.

        Args:
            gradients: for each task that is present, one per shared parameter.
            tasks: the tasks that are present.
        """
        here = rows_index(tasks, len(self.tasks), self._device)
        lengths = torch.stack([torch.stack([self._length(g) for g in row]) for row in gradients])
        usable = (lengths > 0) & (lengths < torch.inf)
        norms, counts = (self._memory[name].index_select(0, here) for name in ("norms", "counts"))
        norms = torch.where(usable, self.beta * norms + (1 - self.beta) * lengths, norms)
        counts = counts + usable
        self._memory["norms"] = self._memory["norms"].index_copy(0, here, norms)
        self._memory["counts"] = self._memory["counts"].index_copy(0, here, counts)
        target = self.tasks.index(self.target) if self.target is not None else 0
        averages = self._memory["norms"] / (1 - self.beta ** self._memory["counts"]).clamp(min=1 - self.beta)
        own, wanted = averages.index_select(0, here), averages[target]
        known = (own > 0) & (wanted > 0)
        factors = torch.where(known, self.relax * wanted / torch.where(known, own, 1.0) + 1 - self.relax, 1.0)
        return [
            [
                g if g is None or task == target else g * factor.to(g.dtype)
                for g, factor in zip(row, of_row.unbind(), strict=True)
            ]
            for task, row, of_row in zip(tasks, gradients, factors.unbind(), strict=True)
        ]

    def _length(self, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return torch.zeros((), dtype=torch.float64, device=self._device)
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        length: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
        return length

    def _take_over(self, saved: dict[str, Any], places: list[int | None]) -> None:
        if not saved["norms"].numel():
            return
        for name in ("norms", "counts"):
            rows = saved[name].to(self._device, copy=True)
            fresh = torch.zeros_like(rows[0])
            self._memory[name] = torch.stack([fresh if place is None else rows[place] for place in places])

    def __repr__(self) -> str:
        return (
            f"MetaBalance({self._inner_repr()}, shared=[{len(self.shared)} parameters], target={self.target!r}, "
            f"relax={self.relax}, beta={self.beta}"
            f"{'' if self.task_weights is None else f', task_weights={self.task_weights}'})"
        )
