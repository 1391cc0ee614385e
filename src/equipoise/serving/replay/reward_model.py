"""The reward model of the doubly robust estimate: mean rewards by item and position, learnt from other rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FOLDS", "PRIOR_ROUNDS", "RewardModel"]

FOLDS: Final = 5
"""Units are dealt to this many folds; a round's values come from the rounds of the other folds."""

PRIOR_ROUNDS: Final = 100
"""Each mean reward is shrunk as if the item had this many more rounds with the mean reward of its position."""


@dataclass(frozen=True)
class RewardModel:
    """Mean rewards by item and position, cross-fitted: no round has a part in its own values.

    So the model is independent of the rounds that it is applied to, which keeps the doubly robust estimate unbiased.

    Attributes:
        values: mean rewards, shape [folds, positions, items].
        fold: the fold of each round, shape [N].
        position: the place of the position of each round, shape [N].
    """

    values: NDArray[np.float64]
    fold: NDArray[np.int64]
    position: NDArray[np.int64]

    @classmethod
    def fit(
        cls,
        reward: NDArray[np.float64],
        action: NDArray[np.int64],
        position: NDArray[np.int64],
        unit: NDArray[np.int64],
        *,
        items: int,
    ) -> RewardModel:
        """Return the means of N rounds.

        Args:
            action: the place of the item among ``items``.
            position: places from 0.
            unit: a unit is in one fold with all its rounds.

        Example:
            >>> reward, zero = np.array([1.0, 0.0, 1.0, 0.0, 1.0]), np.zeros(5, np.int64)
            >>> RewardModel.fit(reward, zero, zero, np.arange(5), items=1).values.round(2).ravel()
            array([0.5 , 0.75, 0.5 , 0.75, 0.5 ])
        """
        fold, places = unit % FOLDS, int(position.max()) + 1
        shape = (FOLDS, places, items)
        cell = np.ravel_multi_index((fold, position, action), shape)
        total = np.bincount(cell, reward, int(np.prod(shape))).reshape(shape)
        count = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)
        total, count = total.sum(0) - total, count.sum(0) - count  # of the other folds
        at_position = total.sum(2, keepdims=True) / np.maximum(count.sum(2, keepdims=True), 1)
        return cls((total + PRIOR_ROUNDS * at_position) / (count + PRIOR_ROUNDS), fold, position)

    def of_items(self, rounds: NDArray[np.int64], /) -> NDArray[np.float64]:
        """Return the mean reward of every item in some rounds, given by their places, shape [rounds, items]."""
        found: NDArray[np.float64] = self.values[self.fold[rounds], self.position[rounds]]
        return found
