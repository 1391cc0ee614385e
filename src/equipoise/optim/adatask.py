"""AdaTask: every task with its own optimizer state on the shared parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.optim.clippy import Clippy
from equipoise.optim.entries import OwnState
from equipoise.optim.joint_step import JointStep
from equipoise.optim.task_optimizer import Pending, TaskOptimizer
from equipoise.optim.wrapper import Wrapper

__all__ = ["AdaTask"]


class AdaTask(TaskOptimizer):
    """Keeps the optimizer's state on shared parameters per task (Yang et al., AAAI 2023), so that none
    drowns another.

    The update of task m comes from its own gradient and its own state, for Adam ``m_m ← β1 m_m + (1 − β1)
    g_m`` and ``v_m`` likewise; the shared parameters move by the sum of the updates. All other parameters
    take the wrapped optimizer's own step. One backward pass per task, and M times the state of the shared
    parameters.

    The state is in the wrapped optimizer's, under torch's names with a leading dimension of M. An absent
    task's state does not move. Weight decay that is part of the gradient is part of every task's, as each
    task has its optimizer; decoupled decay (AdamW) comes once. With one task it is the wrapped optimizer to
    the last bit.

    Args:
        optimizer: a ``torch.optim`` SGD, Adam, AdamW, Adagrad or RMSprop over all the model's parameters, or
            :class:`Clippy` around one.
        shared: the parameters that several tasks use.
        data_parallel: see :class:`PUB`.

    Raises:
        TypeError: ``optimizer`` is none of these.
        ValueError: ``shared`` is empty, or holds what is not the optimizer's; SGD with ``dampening``.

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
        shared: Iterable[Parameter],
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> None:
        if isinstance(optimizer, Wrapper) and not isinstance(optimizer, Clippy):
            raise TypeError(
                f"AdaTask wraps a torch.optim optimizer or Clippy, found {type(optimizer).__name__}. To balance its "
                "updates write PUB(AdaTask(...))."
            )
        super().__init__(optimizer, shared, data_parallel)
        for group in self.param_groups:
            if group.get("dampening"):
                raise ValueError("AdaTask takes SGD without dampening only, because tasks differ in their first step.")
        self._take_averaging_over()

    def _needs_each(self) -> bool:
        return self._count != 1

    def _move(self, pending: Pending) -> None:
        if not pending.of_task:
            self._step_all()
            return
        tasks = pending.tasks
        self._step_heads()
        if tasks:
            gradients = [pending.of_task[task] for task in tasks]
            own = OwnState(len(pending.present), tasks)
            weights = torch.ones(len(tasks), dtype=torch.float64, device=self.shared[0].device)
            JointStep(self.torch_optimizer, self.shared, gradients, own).move(weights, joint=weights)
