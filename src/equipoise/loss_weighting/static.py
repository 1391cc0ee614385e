"""Static weights: the weights of the losses that a team tunes by hand, or a search finds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.loss_weighting.weighting import LossWeighting

__all__ = ["StaticWeights", "static_weights"]


def static_weights(
    tasks: Sequence[str], *, weights: Sequence[float] | None = None, task_weights: Sequence[float] | None = None
) -> LossWeighting:
    """Build static weights: ``Σ_m w_m L_m``.

    Args:
        tasks: the tasks' names.
        weights: one number per task, in the order of ``tasks``. They are used as they are: twice the weights are twice
            the loss. None: all 1, the plain sum to the last bit.
        task_weights: preferences, which multiply the weights.

    Raises:
        SettingError: there is not one number of at least 0 per task, or all are 0.

    Example:
        >>> static_weights(["click", "like", "buy"], weights=[1, 1, 3]).scalarizer
        StaticWeights([1.0, 1.0, 3.0])
        >>> static_weights(["click", "like"], weights=[1, 1, 3])
        Traceback (most recent call last):
        equipoise.errors.SettingError: Static weights: expected 2 numbers, one for each of click, like; found [1, 1, 3].
    """
    if weights is None:
        return LossWeighting(tasks, StaticWeights([1.0] * len(tasks)), task_weights=task_weights)
    if not isinstance(weights, list | tuple) or not all(isinstance(weight, int | float) for weight in weights):
        raise SettingError(
            f"Static weights: expected one number per task, with hyphens between as in 1-0.5-3; found {weights!r}."
        )
    if len(weights) != len(tasks):
        raise SettingError(
            f"Static weights: expected {len(tasks)} numbers, one for each of {', '.join(tasks)}; found {weights!r}."
        )
    return LossWeighting(tasks, StaticWeights(weights), task_weights=task_weights)


class StaticWeights(nn.Module):
    """Sums losses by weights that stay.

    Args:
        weights: shape [M], each at least 0, one of them above.

    Raises:
        SettingError: a weight is negative or not finite, or all are 0.
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise SettingError(
                f"Static weights: expected finite numbers of at least 0, one of them above 0; found {list(weights)!r}."
            )
        # Not saved: they are the option's, not the training's.
        self.register_buffer("weights", torch.tensor([float(weight) for weight in weights]), persistent=False)

    def forward(self, losses: Tensor, /) -> Tensor:
        """Return the weighted sum of losses of shape [M]."""
        return (self.weights * losses).sum()

    def extra_repr(self) -> str:
        """Return the weights."""
        return f"{self.weights.tolist()}"
