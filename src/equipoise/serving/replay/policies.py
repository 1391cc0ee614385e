"""Policies over candidate items: from scores to the probability that each item is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import SettingError

__all__ = ["RankingPolicy"]


@dataclass(frozen=True)
class RankingPolicy:
    """Shows one item in each round by its score.

    Attributes:
        temperature: 0 shows the item with the highest score; items that tie for it share it equally. Above 0 an item is
            shown with probability ∝ exp(score / temperature).
        epsilon: the share of rounds, in [0, 1], in which an item is shown at random instead, all alike.

    Raises:
        SettingError: an option is out of its range.

    Example:
        >>> scores = np.array([[1.0, 3.0, 3.0, 0.0]])
        >>> RankingPolicy().probabilities(scores)
        array([[0. , 0.5, 0.5, 0. ]])
        >>> RankingPolicy(epsilon=0.4).probabilities(scores)
        array([[0.1, 0.4, 0.4, 0.1]])
    """

    temperature: float = 0.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise SettingError(f"temperature should be a number from 0 up, found {self.temperature}.")
        if not 0 <= self.epsilon <= 1:
            raise SettingError(f"epsilon should be a share from 0 to 1, found {self.epsilon}.")

    def probabilities(self, scores: NDArray[np.floating], /) -> NDArray[np.float64]:
        """Return the probability of each item in each round, shape [N, items], from finite scores of that shape."""
        above = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
        share = np.exp(above / self.temperature) if self.temperature else (above == 0).astype(np.float64)
        share /= share.sum(axis=1, keepdims=True)
        found: NDArray[np.float64] = (1 - self.epsilon) * share + self.epsilon / scores.shape[1]
        return found

    def __str__(self) -> str:
        """Return the policy in words."""
        best = "the item with the highest score at each position"
        if self.temperature:
            best = f"an item with probability ∝ exp(score / {self.temperature:g}) at each position"
        return f"{best}, in {self.epsilon:.0%} of the rounds any item" if self.epsilon else best
