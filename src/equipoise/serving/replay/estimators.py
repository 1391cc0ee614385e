"""Off-policy estimates of a policy's mean reward from logged rounds, with intervals by a bootstrap over units.

All three are ratios of sums over rounds, so that a resample costs one product of counts with the units' sums. Source:
Dudík, Langford and Li, Doubly Robust Policy Evaluation and Learning, ICML 2011 (arXiv 1103.4601), sections 2 and 3;
self-normalisation: Swaminathan and Joachims, The Self-Normalized Estimator for Counterfactual Learning, NeurIPS 2015,
equation 8. Both from memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ESTIMATORS", "Floats", "Interval", "PolicyRounds", "interval_of_draws", "logged_value", "resampled_sums"]

Floats = NDArray[np.float64]

ESTIMATORS: Final[Mapping[str, str]] = {
    "IPS": "inverse propensity: rewards weighted by how much more often the policy would have shown the item",
    "SNIPS": "self-normalised: the same over the sum of the weights; a little bias, often a narrower interval",
    "DR": "doubly robust: mean rewards by item and position, corrected by weighted residuals; unbiased as IPS is",
}
"""The estimators by name, each with what it is."""

_COUNTED_AT_ONCE: Final = 1 << 22  # numbers drawn at once by the bootstrap


class Interval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PolicyRounds:
    """N logged rounds as a policy would have met them; every array is float64, of shape [N].

    Attributes:
        reward: the logged reward.
        weight: the policy's probability of the logged action over the logged propensity.
        modelled: the reward model's value of the logged action.
        expected: the reward model's value of the policy: the mean over its actions.

    Example:
        >>> reward, weight, zero = np.array([1.0, 0.0]), np.array([2.0, 0.0]), np.zeros(2)
        >>> rounds = PolicyRounds(reward, weight, zero, zero)
        >>> {name: float(value) for name, value in rounds.estimates(rounds.sums().sum(0)).items()}
        {'IPS': 1.0, 'SNIPS': 1.0, 'DR': 1.0}
    """

    reward: Floats
    weight: Floats
    modelled: Floats
    expected: Floats

    def sums(self) -> Floats:
        """Return the terms that estimates are made of, shape [N, 4]: 1, weight, weight × reward, doubly robust."""
        corrected = self.expected + self.weight * (self.reward - self.modelled)
        return np.stack([np.ones_like(self.reward), self.weight, self.weight * self.reward, corrected], axis=1)

    @staticmethod
    def estimates(totals: Floats, /) -> dict[str, Floats]:
        """Return the estimates by name from sums over rounds, shape [..., 4]; SNIPS is NaN where all weights are 0."""
        count, weight, weighted, corrected = np.moveaxis(totals, -1, 0)
        with np.errstate(invalid="ignore"):
            return {"IPS": weighted / count, "SNIPS": weighted / weight, "DR": corrected / count}

    @property
    def effective(self) -> float:
        """The effective number of rounds: (Σ w)² / Σ w² (Kish, 1965)."""
        return float(self.weight.sum() ** 2 / np.square(self.weight).sum()) if self.weight.any() else 0.0

    @property
    def matched(self) -> int:
        """The number of rounds whose logged action the policy can take."""
        return int((self.weight > 0).sum())

    @property
    def rewarded(self) -> int:
        """The number of those that have a reward other than 0: what IPS and SNIPS rest on."""
        return int(((self.weight > 0) & (self.reward != 0)).sum())


def logged_value(totals: Floats, /) -> Floats:
    """Return the logging policy's mean reward from sums of 1 and of the reward, shape [..., 2]."""
    found: Floats = totals[..., 1] / totals[..., 0]
    return found


def resampled_sums(sums: Floats, units: NDArray[np.int64], /, *, draws: int, seed: int) -> Floats:
    """Return the sums over rounds in each resample of a bootstrap over units, shape [draws, columns].

    A unit, such as a user or a page, is drawn with all its rounds. All columns see the same draws, so that what is
    computed from several policies' columns is paired.

    Args:
        sums: terms by round, shape [N, columns].
        units: the unit of each round, codes from 0 without gaps, shape [N].

    Example:
        >>> resampled_sums(np.ones((5, 1)), np.arange(5), draws=2, seed=0)
        array([[5.],
               [5.]])
    """
    count = int(units.max()) + 1
    by_unit = sums
    if count < len(units):
        by_unit = np.stack([np.bincount(units, column, count) for column in sums.T], axis=1)
    random = np.random.default_rng(seed)
    found = np.empty((draws, sums.shape[1]))
    at_once = max(1, _COUNTED_AT_ONCE // count)
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        places = random.integers(count, size=(some, count)) + count * np.arange(some)[:, None]
        counts = np.bincount(places.ravel(), minlength=some * count).reshape(some, count)
        found[start : start + some] = counts @ by_unit
    return found


def interval_of_draws(values: Floats, /) -> Interval | None:
    """Return the 95 % percentile interval of a bootstrap's values, or None where some are not finite or none differ.

    Without a difference between resamples the data hold no information on the error: no reward was seen.
    """
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
