"""GradNorm: weights of the losses that bring the tasks' gradients to lengths set by how far each task is behind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.loss_weighting.adam import AdamPerTask
from equipoise.loss_weighting.weighting import LossWeighting

__all__ = ["GradNorm", "gradnorm"]

_FLOOR = 1e-3  # the paper does not say what keeps weights positive


def gradnorm(
    tasks: Sequence[str],
    *,
    alpha: float = 1.5,
    weights_lr: float = 0.025,
    task_weights: Sequence[float] | None = None,
) -> LossWeighting:
    """Build GradNorm; see :class:`GradNorm`."""
    return LossWeighting(tasks, GradNorm(len(tasks), alpha=alpha, weights_lr=weights_lr), task_weights=task_weights)


class GradNorm(nn.Module):
    r"""Learns weights by which all tasks train at similar rates.

    From `GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks
    <https://arxiv.org/abs/1711.02257>`_ (ICML 2018), Algorithm 1 with equations 1 and 2. In each step, over the tasks
    present::

        G_m    = ‖∇ w_m L_m‖                           at the forks, of the global batch
        r_m    = (L_m / L_m(0)) / mean_j (L_j / L_j(0))
        L_grad = Σ_m | G_m − mean_j(G_j) · r_m^alpha |       the second term held constant
        w_m    ← w_m − Adam(∂L_grad/∂w_m),  ∂L_grad/∂w_m = sign(G_m − mean_j(G_j) r_m^alpha) · G_m / w_m
        w      ← w · M / Σ_m w_m

    ``L_m(0)`` is the loss of the first batch with a label of the task. Absent tasks keep their weight, and the others
    keep their sum. The gradients are those of the one backward pass, read at the forks; the paper takes the last
    shared layer's parameters. Weights stay at 0.001 or above, which is ours. The formulas are from memory, checked
    with secondary sources.

    Args:
        tasks: the number of tasks M.
        alpha: the pull on tasks that are behind, at least 0; 0: equal lengths. The paper takes 1.5 on NYUv2 and 0.12
            where the tasks are alike.
        weights_lr: Adam's rate for the weights, above 0; 0.025 is FAMO's for its logits, and from memory the paper's.

    Raises:
        SettingError: an option is out of its range.

    Example:
        >>> norms = GradNorm(2, weights_lr=0.5)
        >>> norms.learn_from_gram(torch.tensor([[9.0, 0.0], [0.0, 1.0]]), torch.ones(2), torch.tensor([True, True]))
        >>> norms.weights
        tensor([0.5000, 1.5000])
    """

    weights: Tensor
    initial: Tensor

    def __init__(self, tasks: int, *, alpha: float = 1.5, weights_lr: float = 0.025) -> None:
        super().__init__()
        if not 0 <= alpha < math.inf or not 0 < weights_lr < math.inf:
            raise SettingError(
                "GradNorm: expected alpha of at least 0 and weights_lr above 0, both finite; found "
                f"alpha={alpha}, weights_lr={weights_lr}."
            )
        self.alpha = alpha
        self.adam = AdamPerTask(tasks, lr=weights_lr)
        self.register_buffer("weights", torch.ones(tasks))
        self.register_buffer("initial", torch.zeros(tasks))  # 0: not known yet

    def forward(self, losses: Tensor, /) -> Tensor:
        """Return the weighted sum of losses of shape [M]."""
        return (self.weights * losses).sum()

    @torch.no_grad()
    def learn_from_gram(self, gram: Tensor, losses: Tensor, present: Tensor, /) -> None:
        """Move the weights after a backward pass; see :class:`equipoise.loss_weighting.LossWeighting`."""
        self.initial.copy_(torch.where(present & (self.initial == 0), losses, self.initial))
        norms = gram.diagonal().clamp(min=0).sqrt()
        progress = losses / self.initial
        rates = progress / _mean(progress, present)
        beyond = norms - _mean(norms, present) * rates**self.alpha
        moved = self.weights - self.adam(beyond.sign() * norms / self.weights, present)
        moved = moved.clamp(min=_FLOOR)
        kept = torch.where(present, self.weights, 0.0).sum() / torch.where(present, moved, 0.0).sum()
        self.weights.copy_(torch.where(present, moved * kept, self.weights))

    def extra_repr(self) -> str:
        """Return the main option."""
        return f"alpha={self.alpha}"


def _mean(values: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, values, 0.0).sum() / present.sum()
