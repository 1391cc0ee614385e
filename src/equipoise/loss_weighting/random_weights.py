"""Random loss weighting: new weights in every step, equal on all ranks and the same after a resume."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.loss_weighting.weighting import LossWeighting

__all__ = ["RandomWeights", "random_weights"]


def random_weights(tasks: Sequence[str], *, task_weights: Sequence[float] | None = None) -> LossWeighting:
    """Build random loss weighting, whose draws depend on PyTorch's seed, ``torch.initial_seed()``, at this call."""
    return LossWeighting(tasks, RandomWeights(tasks, seed=torch.initial_seed()), task_weights=task_weights)


class RandomWeights(nn.Module):
    """Sums losses by weights ``softmax(x)``, ``x`` standard normal, drawn anew in every step; their mean is equal.

    Algorithm 2 of `Reasonable Effectiveness of Random Weighting <https://arxiv.org/abs/2111.10603>`_ with the normal
    distribution, as ``torchjd.scalarization.Random``. That draws from the global generator of the device, whose state
    is no part of a checkpoint and may differ between ranks; here a draw depends on the seed, the step and the task's
    name alone.

    Args:
        tasks: the tasks' names.
        seed: of the draws; a saved state brings its own.

    Attributes:
        draws: the number of draws made.

    Example:
        >>> weights = RandomWeights(["click", "like"], seed=3)
        >>> bool(0 < weights(torch.tensor([1.0, 0.0])) < 1)
        True
    """

    places: Tensor

    def __init__(self, tasks: Sequence[str], *, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.draws = 0
        names = sorted(tasks)
        places = torch.tensor([names.index(task) for task in tasks])
        self.register_buffer("places", places, persistent=False)

    def forward(self, losses: Tensor, /) -> Tensor:
        """Draw weights, and return the weighted sum of losses of shape [M]."""
        generator = random.Random(f"{self.seed} {self.draws}")
        self.draws += 1
        normal = torch.tensor([generator.gauss(0.0, 1.0) for _ in range(len(losses))], dtype=losses.dtype)
        weights = normal.softmax(0).to(losses.device, non_blocking=True)[self.places]
        return (weights * losses).sum()
