"""Weights for the tasks' losses that change during a training, as part of its state."""

from equipoise.loss_weighting.gradnorm import GradNorm, gradnorm
from equipoise.loss_weighting.ldc import LossDiscrepancyControl, loss_discrepancy_control
from equipoise.loss_weighting.random_weights import RandomWeights, random_weights
from equipoise.loss_weighting.static import StaticWeights, static_weights
from equipoise.loss_weighting.weighting import LossWeighting

__all__ = [
    "GradNorm",
    "LossDiscrepancyControl",
    "LossWeighting",
    "RandomWeights",
    "StaticWeights",
    "gradnorm",
    "loss_discrepancy_control",
    "random_weights",
    "static_weights",
]
