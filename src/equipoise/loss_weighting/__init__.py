"""Weights for the tasks' losses that change during a training, as part of its state."""

from equipoise.loss_weighting.static import StaticWeights, static_weights
from equipoise.loss_weighting.weighting import LossWeighting

__all__ = ["LossWeighting", "StaticWeights", "static_weights"]
