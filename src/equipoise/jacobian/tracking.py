"""Aggregators that average the tasks' gradients over the steps: DB-MTL and MoCo.

They are legal on parameters only: at a fork the rows of the next step are other examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.jacobian.aggregator import TaskAggregator
from equipoise.solvers import project_simplex

__all__ = ["DualBalancing", "GradientCorrection"]


class DualBalancing(TaskAggregator):
    """Averages each task's gradient and brings all averages to the length of the longest (DB-MTL, arXiv 2308.12029).

        ĝ_m ← β_k ĝ_m + (1 − β_k) g_m,    β_k = β / k_m^σ
        joint = max_j ‖ĝ_j‖ · Σ_m p_m ĝ_m / ‖ĝ_m‖

    k_m is the number of steps in which task m was present, p its preference (ours; 1 without). The paper's gradients
    are those of the logarithm of each loss, which the method's loss weighting takes care of. Formula and defaults are
    those of the authors' code in LibMTL; the paper's text could not be had. The averages take as much memory as the
    tasks' gradients.

    Args:
        beta: β, at least 0 and less than 1.
        sigma: σ, at least 0: how fast β falls.
        task_weights: p, one positive number per task; None: all 1.

    Example:
        >>> aggregator = DualBalancing(beta=0.0)
        >>> jacobian = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
        >>> state = aggregator.initial(2, jacobian[:0])
        >>> aggregator.aggregate(jacobian, state, present=[0, 1], step=0)
        tensor([8., 4.])
    """

    kept: ClassVar = {"averages": "task", "counts": "task"}
    keeps_vectors: ClassVar = True

    def __init__(self, *, beta: float = 0.9, sigma: float = 0.0, task_weights: Sequence[float] | None = None) -> None:
        super().__init__(task_weights=task_weights)
        if not 0 <= beta < 1 or not 0 <= sigma < float("inf"):
            raise ValueError(f"Expected beta from 0 to less than 1 and sigma of at least 0, found {beta=}, {sigma=}.")
        self.beta = beta
        self.sigma = sigma

    def initial(self, tasks: int, like: Tensor, /) -> dict[str, Tensor]:
        """Return averages and counts of 0."""
        return _no_averages(tasks, like)

    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Move the averages; return the sum of the rescaled ones."""
        state["counts"] = state["counts"] + 1
        share = self.beta / state["counts"].pow(self.sigma)
        averages = state["averages"] = torch.lerp(jacobian, state["averages"], share.unsqueeze(1))
        lengths = torch.linalg.vector_norm(averages, dim=1)
        factors = torch.where(lengths > 0, lengths.amax() / lengths, 0.0)
        preferences = self.preferences(present, jacobian)
        return (factors if preferences is None else factors * preferences) @ averages

    def __repr__(self) -> str:
        return self._repr_of(beta=self.beta, sigma=self.sigma)


class GradientCorrection(TaskAggregator):
    """Tracks each task's gradient, and moves weights on the simplex towards the min-norm point (MoCo, ICLR 2023).

        y_m ← y_m − β_k (y_m − g_m),                   β_k = β / k_m^σ
        λ   ← Proj_Δ(λ − γ_k (Y Yᵀ + ρ I) λ),          γ_k = γ / k^σ
        joint = Σ_m p_m λ_m y_m

    arXiv 2210.12624, algorithm 1, from memory; the paper also keeps each y_m in a ball of the Lipschitz constant, which
    nobody knows, and the authors' code does not. k counts the steps, k_m those in which task m was present. The
    step sizes are those of LibMTL, where the authors' code went (it has β = γ = 0.1). Deviation from LibMTL: λ is
    projected, as in the paper, instead of passed through a softmax, and gradients are not normalised. λ therefore moves
    with the squared length of the gradients: where that is small, λ stays near equal weights. The preferences p are
    ours (1 without). The joint gradient is of the length of a mean. The tracked gradients take as much memory as the
    tasks' gradients.

    Args:
        beta: β, positive and at most 1.
        gamma: γ, positive.
        rho: ρ, at least 0: how strongly λ is drawn to equal weights.
        sigma: σ, at least 0: how fast both steps fall.
        task_weights: p, one positive number per task; None: all 1.

    Example:
        >>> aggregator = GradientCorrection(beta=1.0, gamma=0.1)
        >>> jacobian = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> state = aggregator.initial(2, jacobian[:0])
        >>> aggregator.aggregate(jacobian, state, present=[0, 1], step=0)
        tensor([0.8500, 0.5750])
    """

    kept: ClassVar = {"averages": "task", "counts": "task", "shares": "share"}
    keeps_vectors: ClassVar = True

    def __init__(
        self,
        *,
        beta: float = 0.5,
        gamma: float = 0.1,
        rho: float = 0.0,
        sigma: float = 0.5,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(task_weights=task_weights)
        if not (0 < beta <= 1 and 0 < gamma < float("inf") and 0 <= rho < float("inf") and 0 <= sigma < float("inf")):
            raise ValueError(
                "Expected beta over 0 and at most 1, gamma over 0, rho and sigma of at least 0, all finite; found "
                f"{beta=}, {gamma=}, {rho=}, {sigma=}."
            )
        self.beta = beta
        self.gamma = gamma
        self.rho = rho
        self.sigma = sigma

    def initial(self, tasks: int, like: Tensor, /) -> dict[str, Tensor]:
        """Return tracked gradients and counts of 0, and equal shares."""
        return {**_no_averages(tasks, like), "shares": like.new_full((tasks,), 1 / max(tasks, 1))}

    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Move the tracked gradients, then the shares; return the tracked gradients weighed by them."""
        state["counts"] = state["counts"] + 1
        size = self.beta / state["counts"].pow(self.sigma)
        tracked = state["averages"] = torch.lerp(state["averages"], jacobian, size.unsqueeze(1))
        shares = state["shares"]
        slope = (tracked @ tracked.T) @ shares + self.rho * shares
        shares = state["shares"] = project_simplex(shares - self.gamma / (step + 1) ** self.sigma * slope)
        preferences = self.preferences(present, jacobian)
        return (shares if preferences is None else shares * preferences) @ tracked

    def __repr__(self) -> str:
        return self._repr_of(beta=self.beta, gamma=self.gamma, rho=self.rho, sigma=self.sigma)


def _no_averages(tasks: int, like: Tensor) -> dict[str, Tensor]:
    return {"averages": like.new_zeros(tasks, like.shape[1]), "counts": like.new_zeros(tasks)}
