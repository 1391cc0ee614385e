"""The options of MultiBalance's step with averaged lengths, as its kernels take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["BalanceOptions"]


class BalanceOptions(NamedTuple):
    """Numbers that decide a step besides the gradients and the state; see :class:`equipoise.MultiBalance`.

    Attributes:
        preferences: factors of the weights, float32, shape [M]; None for 1.
        gamma: γ, the share of the newest length.
        pull: ρ/M, which is added to each λ.
        beta: β, the length of a step of λ.
        unit: the λ that stands for the weight 1.
        cosine: move λ by the cosines.
    """

    preferences: Tensor | None
    gamma: float
    pull: float
    beta: float
    unit: float
    cosine: bool
