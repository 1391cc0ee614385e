"""GradCraft (arXiv 2407.19682) at the fork: lengths brought near the longest, then all conflicts resolved at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.preferring import Preferring

__all__ = ["GradCraft"]

RIDGE = 1e-6  # on the cosines of the conflicting tasks, which may depend on each other


class GradCraft(Preferring):
    r"""Brings the tasks' gradients near the longest one's length, then removes each one's conflicts with all others.

    From `GradCraft: Elevating Multi-task Recommendations through Holistic Gradient Crafting
    <https://arxiv.org/abs/2407.19682>`_ (KDD 2024; its formulas read from the authors' published code, without the
    moving average of lengths, which that leaves unused)::

        h_m = g_m (τ max_j n_j / n_m + 1 − τ)              n_m = ‖g_m‖
        c_m = h_m + Σ_j x_j h_j                            j over the tasks with ⟨h_m, h_j⟩ < 0
              with ⟨c_m, h_j⟩ = ε ‖h_m‖ ‖h_j‖ for each of these j at once
        out = Σ_m p_m c_m

    PCGrad removes conflicts one after the other, and may bring one back with the next; here none is left between c_m
    and the tasks that it conflicted with. The authors divide the sum by the number of tasks. A ridge of 1e-6 on the
    cosines of conflicting tasks is ours: theirs has no solution where these depend on each other.

    ``task_weights`` are p, the weights of the corrected gradients: next to a task of weight 1, that of a task of weight
    9 counts 9 times.

    Costs M Cholesky solves of M×M matrices per step, without a host sync.

    Args:
        tasks: the tasks' names, or how many there are.
        tau: τ, how far lengths are brought near the longest, in [0, 1]. The authors search 0, 0.1, …, 1; the default is
            that of their code.
        epsilon: ε, the cosine that corrected gradients have with those that they conflicted with, in [0, 1). The
            authors search 1e-10, 1e-9 and 1e-8.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.
        gram_every: measure the Gram matrix in one step out of so many, see :class:`Fork`.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> fork = GradCraft(["click", "like"], tau=0.0)
        >>> shared = torch.ones(2, requires_grad=True)
        >>> for_click, for_like = fork(shared)
        >>> (for_click[0] + for_like[1] - for_like[0]).backward()
        >>> shared.grad  # (½, ½) from click, (0, 1) from like
        tensor([0.5000, 1.5000])
    """

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        tau: float = 1.0,
        epsilon: float = 1e-8,
        task_weights: Sequence[float] | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(
            tasks, task_weights=task_weights, process_group=process_group, overlap=overlap, gram_every=gram_every
        )
        if not (0 <= tau <= 1 and 0 <= epsilon < 1):
            raise ValueError(f"tau must lie in [0, 1] and epsilon in [0, 1), found tau={tau}, epsilon={epsilon}.")
        self.tau = float(tau)
        self.epsilon = float(epsilon)

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return the weights of the gradients in the sum of the corrected ones; see :meth:`Fork.weigh`."""
        norms = gram.double().diagonal().sqrt()
        inverse = torch.where(present, norms, 1.0).reciprocal()
        cosines = gram.double() * inverse * inverse.unsqueeze(1)
        lengths = torch.where(present, self.tau * norms.amax() + (1 - self.tau) * norms, 0.0)
        if self.task_weights is not None:
            lengths = lengths * self.preferences
        # Row m: the tasks with which task m conflicts, and the multiples of unit vectors that its own needs of them.
        conflicts = cosines < 0
        identity = torch.eye(len(gram), dtype=torch.bool, device=gram.device)
        both = conflicts.unsqueeze(2) & conflicts.unsqueeze(1)
        systems = torch.where(identity, 1 + RIDGE, torch.where(both, cosines, 0.0))
        wanted = torch.where(conflicts, self.epsilon - cosines, 0.0)
        factors = torch.linalg.cholesky_ex(systems).L
        # Not cholesky_solve, which in batches cannot be captured in a CUDA graph.
        halfway = torch.linalg.solve_triangular(factors, wanted.unsqueeze(2), upper=False)
        added: Tensor = torch.linalg.solve_triangular(factors.mT, halfway, upper=True).squeeze(2)
        return ((lengths + lengths @ added) * inverse).to(gram.dtype)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"{super().extra_repr()}, tau={self.tau}, epsilon={self.epsilon}"
