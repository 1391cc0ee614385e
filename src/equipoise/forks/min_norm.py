"""MGDA at the fork: the shortest combination of the tasks' gradients, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.preferring import Preferring
from equipoise.solvers import min_norm_weights

__all__ = ["MinNorm"]

Lengths = Literal["own", "equal"]


class MinNorm(Preferring):
    r"""Weighs the tasks' gradients by the shortest of their convex combinations (MGDA).

    From `Multi-Task Learning as Multi-Objective Optimization <https://arxiv.org/abs/1810.04650>`_ (eq. 3; Désidéri
    2012)::

        λ   = argmin ‖Σ_m λ_m v_m‖,  λ ≥ 0, Σ λ = 1
        out = Σ_m λ_m g_m              lengths="own":   v_m = g_m
        out = K n̄ Σ_m λ_m v_m          lengths="equal": v_m = g_m / n_m

    with ``n_m = ‖g_m‖``, n̄ their mean over the K tasks present. No task's loss rises along ``out``, to first order.
    With the own lengths λ goes to the shortest gradients, and the scale of a loss decides; with equal lengths it does
    not matter, and λ depends on the cosines alone. Normalising is one of the variants in the authors' code
    (``normalization_type="l2"``), which however applies λ to the gradients of their own lengths; the factor K n̄ is
    ours: orthogonal gradients of equal lengths give the plain sum.

    ``task_weights`` divide v_m by p_m, and out holds ``λ_m v_m`` (with the own lengths scaled so that the weights sum
    to 1): next to a task of weight 1, the loss of a task of weight 9 falls 9 times as fast along out, to first order,
    where both have λ > 0; with equal lengths 9 times as fast per unit of its gradient.

    The solver makes a fixed number of steps without a host sync; torchjd's Frank-Wolfe steps wait for the device in
    each of up to 100.

    Args:
        tasks: the tasks' names, or how many there are.
        lengths: "own" or "equal", see above.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.
        gram_every: measure the Gram matrix in one step out of so many, see :class:`Fork`.

    Raises:
        ValueError: ``lengths`` is neither, or ``task_weights`` are not one positive number per task.

    Example:
        >>> fork = MinNorm(["click", "conversion"])
        >>> shared = torch.ones(2, requires_grad=True)
        >>> for_click, for_conversion = fork(shared)
        >>> (for_click[0] + 3 * for_conversion[1]).backward()
        >>> fork.last_weights
        tensor([0.9000, 0.1000])
    """

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        lengths: Lengths = "own",
        task_weights: Sequence[float] | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(
            tasks, task_weights=task_weights, process_group=process_group, overlap=overlap, gram_every=gram_every
        )
        if lengths not in get_args(Lengths):
            raise ValueError(f"lengths must be one of {get_args(Lengths)}, found {lengths!r}.")
        self.lengths: Lengths = lengths

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return the weights of the gradients in the shortest combination; see :meth:`Fork.weigh`."""
        wide = gram.double()
        norms = wide.diagonal().sqrt()
        scale = torch.where(present, 1.0, 0.0).to(wide)
        if self.lengths == "equal":
            scale = scale / torch.where(present, norms, 1.0)
        if self.task_weights is not None:
            scale = scale / self.preferences
        weights = min_norm_weights(wide * scale * scale.unsqueeze(1), present) * scale
        tiny = torch.finfo(wide.dtype).tiny
        # The norms of absent tasks are 0.
        total = weights.sum() if self.lengths == "own" else (weights * norms).sum() / norms.sum().clamp(min=tiny)
        return (weights / total.clamp(min=tiny)).to(gram.dtype)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"{super().extra_repr()}, lengths={self.lengths!r}"
