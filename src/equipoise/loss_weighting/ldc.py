"""LDC-MTL: weights of the losses that control the discrepancy between weighted losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.loss_weighting.weighting import LossWeighting

__all__ = ["LossDiscrepancyControl", "loss_discrepancy_control"]


def loss_discrepancy_control(
    tasks: Sequence[str], *, penalty: float = 0.1, task_weights: Sequence[float] | None = None
) -> LossWeighting:
    """Build LDC-MTL; see :class:`LossDiscrepancyControl`."""
    return LossWeighting(tasks, LossDiscrepancyControl(len(tasks), penalty=penalty), task_weights=task_weights)


class LossDiscrepancyControl(nn.Module):
    r"""Trains the model on weighted losses and on the discrepancy between them; weights learn from the discrepancy.

    From `LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control
    <https://arxiv.org/abs/2502.08585>`_, the first-order form, with ``w = softmax(s)``::

        f = Σ_{m<M} | w_m L_m − w_{m+1} L_{m+1} |            moves w (upper level)
        Σ_m w_m L_m + penalty · f                          moves the model (lower level and penalty)

    The paper's full text could not be had: the formulas are those of its abstract and of the authors' code, which
    takes a penalty of 0.1 on Cityscapes, 0.05 on NYUv2 and 0.01 on CelebA, and the losses unscaled on the first and the
    last. Two things differ. ``s`` is one learned number per task, where the authors' comes from a small network of the
    shared features. And ``Σ w L`` does not move ``w``, where their code lets it: it would put all weight on the task
    of the smallest loss. Each task is compared with the next, so the order of the tasks matters.

    Args:
        tasks: the number of tasks M.
        penalty: the weight of the discrepancy in the model's loss, at least 0. From 0.5 a task's loss can get a
            negative weight.

    Raises:
        SettingError: ``penalty`` is out of its range.

    Example:
        >>> control = LossDiscrepancyControl(2, penalty=0.1)
        >>> control(torch.tensor([1.0, 3.0]))  # (1 + 3) / 2 + 0.1 · |0.5 − 1.5|
        tensor(2.1000, grad_fn=<AddBackward0>)
    """

    def __init__(self, tasks: int, *, penalty: float = 0.1) -> None:
        super().__init__()
        if not 0 <= penalty < math.inf:
            raise SettingError(f"LDC-MTL: expected a finite penalty of at least 0; found {penalty}.")
        self.penalty = penalty
        self.logits = nn.Parameter(torch.zeros(tasks))

    def forward(self, losses: Tensor, /) -> Tensor:
        """Return the model's loss for losses of shape [M]; its gradient moves the weights by the discrepancy alone."""
        weights = self.logits.softmax(0)
        weighted = weights * losses
        return (weights.detach() * losses).sum() + self.penalty * weighted.diff().abs().sum()

    def extra_repr(self) -> str:
        """Return the penalty."""
        return f"penalty={self.penalty}"
