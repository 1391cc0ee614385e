"""Aggregators that weigh the tasks' gradients by a solution on their Gram matrix, on the device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from equipoise.jacobian.aggregator import TaskAggregator, WeighingAggregator
from equipoise.solvers import bargaining_weights, pareto_efficient_weights

__all__ = ["Bargaining", "ParetoEfficient"]


class Bargaining(TaskAggregator):
    """Weighs gradients by the w > 0 with ``G w = (p / w)^(1/a)``, ``G = J Jᵀ``: Nash-MTL for a = 1, else FairGrad.

    The weights are rescaled to the mean 1, so that equal weights are the plain sum and a learning rate keeps its
    meaning (ours). With a = 1 the tasks' gains ``w_m ⟨g_m, Σ w_j g_j⟩`` are proportional to p.

    Args:
        exponent: a, positive; see :func:`equipoise.solvers.bargaining_weights`.
        task_weights: p, one positive number per task; None: all 1.

    Example:
        >>> import torch
        >>> jacobian = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> Bargaining().aggregate(jacobian, {}, present=[0, 1], step=0)  # (1/2, 1) has the mean 3/4
        tensor([1.3333, 1.3333])
    """

    def __init__(self, *, exponent: float = 1.0, task_weights: Sequence[float] | None = None) -> None:
        super().__init__(task_weights=task_weights)
        if not 0 < exponent < float("inf"):
            raise ValueError(f"exponent must be positive and finite, found {exponent}.")
        self.exponent = exponent

    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Return the weighted sum of the rows."""
        preferences = self.preferences(present, jacobian.double())
        gram = jacobian @ jacobian.T
        weights = bargaining_weights(gram.double(), preferences=preferences, exponent=self.exponent)
        return (weights / weights.mean()).to(jacobian) @ jacobian

    def __repr__(self) -> str:
        return self._repr_of(exponent=self.exponent)


class ParetoEfficient(WeighingAggregator):
    """Weighs gradients by :func:`equipoise.solvers.pareto_efficient_weights` (PE-LTR).

    Args:
        least: the part of the weights that is shared equally in any case, from 0 to 1.
        task_weights: see :class:`equipoise.jacobian.aggregator.WeighingAggregator`.
    """

    def __init__(self, *, least: float = 0.0, task_weights: Sequence[float] | None = None) -> None:
        super().__init__(task_weights=task_weights)
        if not 0 <= least <= 1:
            raise ValueError(f"least must be from 0 to 1, found {least}.")
        self.least = least

    def weigh(self, jacobian: Tensor, state: dict[str, Tensor], /, *, step: int) -> Tensor:
        """Return weights with the sum 1."""
        return pareto_efficient_weights(jacobian @ jacobian.T, least=self.least)

    def __repr__(self) -> str:
        return self._repr_of(least=self.least)
