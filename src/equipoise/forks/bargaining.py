"""Nash-MTL and FairGrad at the fork: weights by the bargaining equation, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.preferring import Preferring
from equipoise.solvers import bargaining_weights

__all__ = ["Bargaining"]


class Bargaining(Preferring):
    r"""Weighs the tasks' gradients so that ``G w = (p / w)^(1/a)``: no task can gain much at the others' cost.

    With ``a = 1`` this is `Multi-Task Learning as a Bargaining Game <https://arxiv.org/abs/2202.01017>`_ (Nash-MTL,
    eq. 4); any a is `Fair Resource Allocation in Multi-Task Learning <https://arxiv.org/abs/2402.15638>`_ (FairGrad,
    eq. 4, with α = a): the larger a, the more the task that gains least counts. The equation is solved for
    ``G / ‖G‖_F``, ``‖·‖_F`` the Frobenius norm, as Nash-MTL's authors do: twice the losses then give twice the gradient
    upstream. FairGrad's authors solve it for G; the direction is the same.

    Deviations: the equation is solved in every step and exactly, but for the ridge of
    :func:`equipoise.solvers.bargaining_weights`; the limit of 1 on the norm of what flows on, which both authors' codes
    have, is left out (``clip_norm`` limits the gradient of the parameters).

    ``task_weights`` are p: next to a task of weight 1, a task of weight 9 has 9 times the utility ``w_m (G w)_m^a``,
    for a = 1 its share ``w_m ⟨g_m, d⟩`` of the squared length of ``d = Σ w_m g_m``.

    Costs one Newton solve of M×M matrices per step, without a host sync.

    Args:
        tasks: the tasks' names, or how many there are.
        exponent: a, positive.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.
        gram_every: measure the Gram matrix in one step out of so many, see :class:`Fork`.

    Raises:
        ValueError: ``exponent`` or ``task_weights`` are out of range.

    Example:
        >>> fork = Bargaining(["click", "conversion"])
        >>> shared = torch.ones(2, requires_grad=True)
        >>> for_click, for_conversion = fork(shared)
        >>> (for_click[0] + 23 * for_conversion[1]).backward()
        >>> bool(torch.isclose(*shared.grad))  # the scales of the losses do not matter
        True
    """

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        exponent: float = 1.0,
        task_weights: Sequence[float] | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(
            tasks, task_weights=task_weights, process_group=process_group, overlap=overlap, gram_every=gram_every
        )
        if not 0 < exponent < torch.inf:
            raise ValueError(f"exponent must be positive and finite, found {exponent}.")
        self.exponent = float(exponent)

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return the solution of the bargaining equation; see :meth:`Fork.weigh`."""
        wide = gram.double()
        norm = torch.linalg.matrix_norm(wide).clamp(min=torch.finfo(wide.dtype).tiny)
        return bargaining_weights(
            wide / norm, present, preferences=self.current_preferences(), exponent=self.exponent
        ).to(gram.dtype)  # fmt: skip

    def current_preferences(self) -> Tensor | None:
        """Return p, shape [M]; None if all are 1."""
        return None if self.task_weights is None else self.preferences

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"{super().extra_repr()}, exponent={self.exponent}"
