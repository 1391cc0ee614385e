"""Jacobian descent: steps with an aggregation of the tasks' gradients of the shared parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.optim.gradients import Pending
from equipoise.optim.task_optimizer import TaskOptimizer

__all__ = ["JacobianDescent"]


class JacobianDescent(TaskOptimizer):
    """Replaces the sum of the tasks' gradients of the shared parameters by another aggregation.

    With ``J`` the Jacobian of the losses, one row per task and one column per shared parameter, the wrapped optimizer
    steps with the gradient ``aggregator(J)`` on the shared parameters, and with the sum of the gradients on all others.
    Any ``Aggregator`` of ``torchjd.aggregation`` that keeps no state fits.

    Each step makes one backward pass per task and takes M times the memory of the shared gradients. It waits for the
    device, because ``J`` has rows for the present tasks only. A task is absent if it has no loss, or if its row is
    all zeros or not finite. With one task the result equals that of the wrapped optimizer bit for bit.

    Over several ranks ``J`` is averaged first. All ranks step with the first rank's aggregation, so that an aggregator
    may be random.

    Args:
        optimizer: a ``torch.optim`` SGD, Adam, AdamW, Adagrad or RMSprop over all the model's parameters, or
            :class:`equipoise.Clippy` around one.
        aggregator: from a matrix of shape [K, N], K the number of present tasks, to a vector of shape [N].
        shared: the parameters that several tasks use.
        tasks: the tasks' names; see :class:`equipoise.PUB`.
        data_parallel: see :class:`equipoise.PUB`.

    Raises:
        TypeError: ``optimizer`` is none of these, or ``aggregator`` keeps a state, which checkpoints would not hold; in
            :meth:`step`, a shared parameter has a sparse gradient.
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
        aggregator: Callable[[Tensor], Tensor],
        *,
        shared: Iterable[Parameter],
        tasks: Sequence[str] | None = None,
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> None:
        if hasattr(aggregator, "reset"):
            raise TypeError(
                f"Expected an aggregator without a state of its own, found {type(aggregator).__name__}, whose state a "
                "checkpoint would not hold: choose another aggregator."
            )
        super().__init__(optimizer, shared, tasks, data_parallel)
        self.aggregator = aggregator
        self._take_averaging_over()

    def _needs_each(self) -> bool:
        return len(self.tasks) != 1

    def _move(self, pending: Pending) -> None:
        if pending.of_task:
            self._aggregate(pending.of_task)
        self._step_all()

    def _aggregate(self, of_task: Sequence[Sequence[Tensor | None]]) -> None:
        """Write the aggregation of the tasks' gradients into ``grad`` of the shared parameters."""
        reached = [
            (p, of_p) for p, *of_p in zip(self.shared, *of_task, strict=True) if any(g is not None for g in of_p)
        ]
        if not reached:
            return
        jacobian = torch.cat([_rows(p, of_p) for p, of_p in reached], dim=1)
        sizes = torch.linalg.vector_norm(jacobian, ord=torch.inf, dim=1)
        here = ((sizes > 0) & (sizes < torch.inf)).nonzero().squeeze(1)
        if not len(here):
            return
        joint = self.aggregator(jacobian if len(here) == len(jacobian) else jacobian[here])
        if self._averaging is not None:
            joint = joint.contiguous()
            dist.broadcast(joint, group=self._averaging.group, group_src=0)
        parts = torch.split(joint, [p.numel() for p, _ in reached])
        for (p, _), part in zip(reached, parts, strict=True):
            p.grad = part.view_as(p).to(p.dtype)

    def __repr__(self) -> str:
        return f"JacobianDescent({self._inner_repr()}, {self.aggregator!r}, shared=[{len(self.shared)} parameters])"


def _rows(p: Parameter, gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the gradients of one parameter, zeros for None, in float32 or wider, shape [M, number of elements]."""
    if any(gradient is not None and gradient.is_sparse for gradient in gradients):
        raise TypeError(
            "JacobianDescent takes dense gradients of shared parameters, found a sparse one: set sparse=False in its "
            "embedding, or leave that parameter out of shared."
        )
    wide = torch.promote_types(p.dtype, torch.float32)
    return torch.stack(
        [
            p.new_zeros(p.numel(), dtype=wide) if gradient is None else gradient.to(wide).reshape(-1)
            for gradient in gradients
        ]
    )
