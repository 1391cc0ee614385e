"""Jacobian descent: steps with an aggregation of the tasks' gradients of the shared parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.jacobian.aggregator import Plain, TaskAggregator, in_order, put_back, rows_of
from equipoise.optim.gradients import Pending
from equipoise.optim.task_optimizer import TaskOptimizer

__all__ = ["JacobianDescent"]


class JacobianDescent(TaskOptimizer):
    """Replaces the sum of the tasks' gradients of the shared parameters by another aggregation.

    With ``J`` the Jacobian of the losses, one row per task and one column per shared parameter, the wrapped optimizer
    steps with the gradient ``aggregator(J)`` on the shared parameters, and with the sum of the gradients on all others.
    Any ``Aggregator`` of ``torchjd.aggregation`` that keeps no state fits. One with a state or preferences is a
    :class:`equipoise.jacobian.TaskAggregator`: its state is saved with the optimizer's, follows the tasks' names, and
    does not move for an absent task, in a skipped step, or when a ``GradScaler`` finds an overflow.

    Each step makes one backward pass per task and takes M times the memory of the shared gradients. It waits for the
    device, because ``J`` has rows for the present tasks only. A task is absent if it has no loss, or if its row is
    all zeros or not finite. With one task the result equals that of the wrapped optimizer bit for bit.

    Over several ranks ``J`` is averaged first. All ranks step with the first rank's aggregation, so that an aggregator
    may be random. A :class:`equipoise.jacobian.TaskAggregator` draws alike on all ranks.

    Args:
        optimizer: a ``torch.optim`` SGD, Adam, AdamW, Adagrad or RMSprop over all the model's parameters, or
            :class:`equipoise.Clippy` around one.
        aggregator: from a matrix of shape [K, N], K the number of present tasks, to a vector of shape [N]; or a
            :class:`equipoise.jacobian.TaskAggregator`.
        shared: the parameters that several tasks use.
        tasks: the tasks' names; see :class:`equipoise.PUB`.
        data_parallel: see :class:`equipoise.PUB`.

    Raises:
        TypeError: ``optimizer`` is none of these, or ``aggregator`` keeps a state of its own, which checkpoints would
            not hold; in :meth:`step`, a shared parameter has a sparse gradient.
        ValueError: ``shared`` is empty, or holds a parameter that the optimizer lacks.

    Example:
        >>> shared, head = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
        >>> sgd = torch.optim.SGD([shared, head], lr=1.0)
        >>> optimizer = JacobianDescent(sgd, lambda rows: rows.mean(0), shared=[shared])
        >>> optimizer.zero_grad()
        >>> optimizer.backward([shared.sum(), 3 * (shared * head).sum()])
        >>> optimizer.step()
        >>> shared.data, head.data
        (tensor([-1., -1.]), tensor([-2., -2.]))
    """

    _key = "jacobian"

    def __init__(
        self,
        optimizer: Optimizer,
        aggregator: Callable[[Tensor], Tensor] | TaskAggregator,
        *,
        shared: Iterable[Parameter],
        tasks: Sequence[str] | None = None,
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> None:
        if hasattr(aggregator, "reset"):
            raise TypeError(
                f"Expected an aggregator without a state of its own, found {type(aggregator).__name__}, whose state a "
                "checkpoint would not hold: choose another aggregator, or write it as an "
                "equipoise.jacobian.TaskAggregator."
            )
        self.aggregator = aggregator if isinstance(aggregator, TaskAggregator) else Plain(aggregator)
        super().__init__(optimizer, shared, tasks, data_parallel)
        if not self.tasks:
            self._memory.update(self._before_the_first_step(0))
        self._take_averaging_over()

    def _begin(self, tasks: tuple[str, ...]) -> None:
        self.aggregator.begin(tasks)
        super()._begin(tasks)
        self._memory.update(self._before_the_first_step(len(tasks)))

    def _before_the_first_step(self, tasks: int) -> dict[str, Any]:
        columns = torch.cat([p.new_empty(0, p.numel(), dtype=_wide(p)) for p in self.shared], dim=1)
        return {"aggregations": 0, "aggregator": self.aggregator.initial(tasks, columns)}

    def _needs_each(self) -> bool:
        return len(self.tasks) != 1

    def _move(self, pending: Pending) -> None:
        if pending.of_task:
            self._aggregate(pending.of_task)
        self._step_all()

    def _aggregate(self, of_task: Sequence[Sequence[Tensor | None]]) -> None:
        """Write the aggregation of the tasks' gradients into ``grad`` of the shared parameters."""
        columns = [(p, of_p, any(g is not None for g in of_p)) for p, *of_p in zip(self.shared, *of_task, strict=True)]
        if not self.aggregator.keeps_vectors:
            columns = [(p, of_p, reached) for p, of_p, reached in columns if reached]
        if not any(reached for _, _, reached in columns):
            return
        jacobian = torch.cat([_rows(p, of_p) for p, of_p, _ in columns], dim=1)
        sizes = torch.linalg.vector_norm(jacobian, ord=torch.inf, dim=1)
        here = ((sizes > 0) & (sizes < torch.inf)).nonzero().squeeze(1)
        if not len(here):
            return
        joint = self._joint(jacobian if len(here) == len(jacobian) else jacobian[here], here)
        if self._averaging is not None:
            joint = joint.contiguous()
            dist.broadcast(joint, group=self._averaging.group, group_src=0)
        parts = torch.split(joint, [p.numel() for p, _, _ in columns])
        for (p, _, reached), part in zip(columns, parts, strict=True):
            if reached:
                p.grad = part.view_as(p).to(p.dtype)

    def _joint(self, jacobian: Tensor, here: Tensor) -> Tensor:
        """Return the aggregation of the rows of the tasks at the places ``here``; moves their state."""
        memory, kept = self._memory, self.aggregator.kept
        whole: dict[str, Tensor] = memory["aggregator"]
        everyone = len(here) == len(self.tasks)
        state = dict(whole) if everyone else {name: rows_of(kept[name], whole[name], here) for name in whole}
        joint = self.aggregator.aggregate(jacobian, state, present=here.tolist(), step=memory["aggregations"])
        if not everyone:
            state = {name: put_back(kept[name], whole[name], here, rows) for name, rows in state.items()}
        # A new dict: a saved state keeps the old one.
        memory["aggregator"], memory["aggregations"] = state, memory["aggregations"] + 1
        return joint

    def _take_over(self, saved: dict[str, Any], places: list[int | None]) -> None:
        fresh = self._before_the_first_step(len(places))["aggregator"]
        self._memory["aggregations"] = saved["aggregations"]
        self._memory["aggregator"] = {
            name: in_order(kind, saved["aggregator"][name], fresh[name], places)
            for name, kind in self.aggregator.kept.items()
        }

    def __repr__(self) -> str:
        return f"JacobianDescent({self._inner_repr()}, {self.aggregator!r}, shared=[{len(self.shared)} parameters])"


def _rows(p: Parameter, gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the gradients of one parameter, zeros for None, in float32 or wider, shape [M, number of elements]."""
    if any(gradient is not None and gradient.is_sparse for gradient in gradients):
        raise TypeError(
            "JacobianDescent takes dense gradients of shared parameters, found a sparse one: set sparse=False in its "
            "embedding, or leave that parameter out of shared."
        )
    wide = _wide(p)
    return torch.stack(
        [
            p.new_zeros(p.numel(), dtype=wide) if gradient is None else gradient.to(wide).reshape(-1)
            for gradient in gradients
        ]
    )


def _wide(p: Tensor) -> torch.dtype:
    """Return the dtype of the Jacobian's columns for a parameter."""
    return torch.promote_types(p.dtype, torch.float32)
