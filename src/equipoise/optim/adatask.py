"""AdaTask: keeps an optimizer state per task on the shared parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.optim.checks import check_unwrapped
from equipoise.optim.entries import OwnState, rows_index
from equipoise.optim.gradients import Pending
from equipoise.optim.joint_step import JointStep
from equipoise.optim.task_optimizer import TaskOptimizer
from equipoise.preferences import preference_factors

__all__ = ["AdaTask"]


class AdaTask(TaskOptimizer):
    """Keeps one optimizer state per task on the shared parameters, so that no task dominates (Yang et al., AAAI 2023).

    The update of task m comes from its own gradient and its own state, for Adam ``m_m ← β1 m_m + (1 − β1)
    g_m`` and ``v_m`` likewise; the shared parameters move by the sum of the updates. All other parameters
    take the wrapped optimizer's own step. One backward pass per task, and M times the state of the shared
    parameters.

    The state is in the wrapped optimizer's, under torch's names with a leading dimension of M. An absent
    task's state does not move. Coupled weight decay is part of each task's gradient; decoupled decay (AdamW) is
    applied once. With one task the result equals that of the wrapped optimizer bit for bit.

    Args:
        optimizer: a ``torch.optim`` SGD, Adam, AdamW, Adagrad or RMSprop over all the model's parameters, or
            :class:`Clippy` around one.
        shared: the parameters that several tasks use, or ``"auto"``; see :class:`PUB`.
        tasks: the tasks' names; see :class:`PUB`.
        task_weights: preferences, one positive number per task in the order of ``tasks``, divided by their mean; they
            multiply the tasks' updates (ours). None: all equal.
        data_parallel: see :class:`PUB`.

    Raises:
        TypeError: ``optimizer`` is none of these.
        ValueError: ``shared`` is empty, or holds a parameter that the optimizer lacks; SGD with ``dampening``;
            ``task_weights`` are not one positive number per task, which may show in the first ``backward``.

    Example:
        >>> shared, head = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdaTask(torch.optim.Adam([shared, head], lr=0.5), shared=[shared])
        >>> optimizer.zero_grad()
        >>> optimizer.backward([shared.sum(), 100 * (shared * head).sum()])
        >>> optimizer.step()
        >>> shared.data, head.data
        (tensor([0., 0.]), tensor([0.5000, 0.5000]))
    """

    _key = "adatask"

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        shared: Iterable[Parameter] | Literal["auto"],
        tasks: Sequence[str] | None = None,
        task_weights: Sequence[float] | None = None,
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> None:
        check_unwrapped(optimizer, "AdaTask")
        self.task_weights = None if task_weights is None else [float(weight) for weight in task_weights]
        super().__init__(optimizer, shared, tasks, data_parallel)
        for group in self.param_groups:
            if group.get("dampening"):
                raise ValueError("AdaTask takes SGD without dampening only, because tasks differ in their first step.")
        self._take_averaging_over()

    def _begin(self, tasks: tuple[str, ...]) -> None:
        factors = preference_factors(self.task_weights, tasks)
        self._factors = torch.tensor(factors, dtype=torch.float64, device=self._device)
        super()._begin(tasks)

    def _needs_each(self) -> bool:
        return len(self.tasks) != 1

    def _move(self, pending: Pending) -> None:
        if not pending.of_task:
            self._step_all()
            return
        tasks = pending.tasks
        self._step_towers()
        if tasks:
            gradients = [pending.of_task[task] for task in tasks]
            own = OwnState(len(pending.present), tasks)
            weights = self._factors.index_select(0, rows_index(tasks, len(self.tasks), self._device))
            JointStep(self.torch_optimizer, self.shared, gradients, own, counts=self._counts).move(
                weights, joint=weights
            )

    def _create_state(self) -> None:
        super()._create_state()
        if len(self.tasks) > 1:
            for p in self.shared:
                for name, value in self.state.get(p, {}).items():
                    self.state[p][name] = value.repeat(len(self.tasks), *[1] * value.dim())

    def _take_over(self, saved: dict[str, Any], places: list[int | None]) -> None:
        if places == list(range(len(saved["tasks"]))):
            return
        for group in self.param_groups:
            for p in group["params"]:
                own = self.state.get(p, {})
                if any(value.dim() == p.dim() + 1 for name, value in own.items() if name != "step"):
                    self.state[p] = self._rows_by_name(p, group, own, places)

    def _rows_by_name(
        self, p: Parameter, group: dict[str, Any], own: dict[str, Any], places: list[int | None]
    ) -> dict[str, Any]:
        """Return the state in the present order of tasks; a new task has its state before the first step."""
        fresh = self._rule.initial(p, group)
        return {
            name: torch.stack([fresh[name].to(value) if place is None else value[place] for place in places])
            for name, value in own.items()
        }

    def __repr__(self) -> str:
        preferring = "" if self.task_weights is None else f", task_weights={self.task_weights}"
        return f"AdaTask({self._inner_repr()}{preferring})"
