"""Paired statistics over seeds: differences with 95 % intervals and t-tests, relative gains, delta-m, Holm, bootstrap.

Only seeds that both sides have are compared: a seed fixes the initial weights and the batches, so that its
effect cancels in the difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

__all__ = [
    "CONFIDENCE",
    "DRAWS",
    "Array",
    "Interval",
    "PairedComparison",
    "TaskMetrics",
    "delta_m",
    "gain_over_seeds_and_users",
    "holm",
    "interval",
    "paired_comparison",
    "relative_gain",
]

Array = npt.NDArray[np.float64]

TaskMetrics = Mapping[str, Mapping[str, float]]
"""One run's metrics: task, then metric ("auc", "ne"; of a regression "rmse", "mae"), then the value."""

CONFIDENCE = 0.95
"""Level of every interval."""

DRAWS = 2_000
"""Draws of a bootstrap."""

_HIGHER_IS_BETTER = {"auc": True, "ne": False, "rmse": False, "mae": False}
# Differences that agree to this relative precision are rounding noise around one constant: a test on them
# would report certainty that the data do not hold.
_SAME = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with the two ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True if both ends lie on the same side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class PairedComparison:
    """A mean over the seeds' paired differences, with what the seeds allow to be said about it.

    Attributes:
        pairs: seeds that both sides have with a finite value.
        unpaired: seeds that only one side has (not run yet, or not finite); they are left out.
        mean: the mean difference; ``None`` without a pair.
        low: lower end of the confidence interval (Student's t); ``None`` where there is none.
        high: upper end.
        p: two-sided p value of the paired t-test; ``None`` where there is no test.
    """

    pairs: int
    unpaired: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def verdict(self) -> Literal["above", "below", "unclear", "untested"]:
        """On which side of zero the whole interval lies; ``untested`` without an interval."""
        if self.low is None or self.high is None:
            return "untested"
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "unclear"


def interval(differences: Sequence[float], *, unpaired: int = 0) -> PairedComparison:
    """Mean, 95 % Student-t confidence interval and two-sided t-test of paired differences, one per seed.

    With one seed there is a mean but neither interval nor p value. Without any variation of the differences there is
    no interval and no p value either, unless all are exactly zero (interval
    [0, 0], p = 1).

    Raises:
        ValueError: a difference is not finite.

    Example:
        >>> found = interval([1.0, 2.0, 3.0])
        >>> f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}], p = {found.p:.3f}"
        '2.00 [-0.48, 4.48], p = 0.074'
    """
    if not all(map(math.isfinite, differences)):
        raise ValueError(f"Differences must be finite numbers, found {list(differences)}: leave them out.")
    if not differences:
        return PairedComparison(0, unpaired, None, None, None, None)
    mean = float(np.mean(differences))
    count = len(differences)
    if count == 1:
        return PairedComparison(1, unpaired, mean, None, None, None)
    largest = max(abs(value) for value in differences)
    standard_error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    if largest == 0:
        return PairedComparison(count, unpaired, 0.0, 0.0, 0.0, 1.0)
    if standard_error <= _SAME * largest:
        return PairedComparison(count, unpaired, mean, None, None, None)
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * standard_error
    p = 2 * float(special.stdtr(count - 1, -abs(mean) / standard_error))
    return PairedComparison(count, unpaired, mean, mean - half, mean + half, p)


def paired_comparison(values: Mapping[int, float], reference: Mapping[int, float], /) -> PairedComparison:
    """Return ``values - reference``, paired by seed; non-finite values count as missing.

    Args:
        values: seed to value of the method.
        reference: seed to value of what it is compared with.

    Example:
        >>> paired_comparison({0: 0.7, 1: 0.8}, {1: 0.75, 2: 0.6}).pairs
        1
    """
    shared, unpaired = _shared_seeds(values, reference)
    return interval([values[seed] - reference[seed] for seed in shared], unpaired=unpaired)


def relative_gain(
    values: Mapping[int, float], reference: Mapping[int, float], /, *, higher_is_better: bool
) -> PairedComparison:
    """Relative change in per cent of the reference, seed by seed, with the sign chosen so that + is better.

    For NE this is the NE gain of ALGORITHMS section 3, ``100 (NE_ref - NE) / NE_ref``.

    Raises:
        ValueError: a reference value is not above zero.

    Example:
        >>> relative_gain({0: 0.375, 1: 0.25}, {0: 0.5, 1: 0.5}, higher_is_better=False).mean
        37.5
    """
    shared, unpaired = _shared_seeds(values, reference)
    gains = [_gain(values[seed], reference[seed], higher_is_better) for seed in shared]
    return interval(gains, unpaired=unpaired)


def delta_m(runs: Mapping[int, TaskMetrics], alone: Mapping[int, TaskMetrics], /) -> PairedComparison:
    """Delta-m in per cent against single-task training: mean over tasks and metrics, + is better.

    The metrics are AUC and NE; of a regression RMSE and MAE, since R² may be negative and has no relative change.

    The mean is taken per seed over the same (task, metric) cells for every seed: those for which both sides
    have a value somewhere. A seed that lacks one of these cells is left out and counted in ``unpaired``.

    Raises:
        ValueError: a reference value is not above zero.

    Example:
        >>> alone = {0: {"click": {"auc": 0.80, "ne": 0.50}}}
        >>> round(delta_m({0: {"click": {"auc": 0.84, "ne": 0.45}}}, alone).mean, 6)
        7.5
    """
    cells = sorted(_cells(runs.values()) & _cells(alone.values()))
    if not cells:
        return interval([], unpaired=len({*runs, *alone}))
    gains = []
    for seed in sorted(runs.keys() & alone.keys()):
        if _cells([runs[seed]]).issuperset(cells) and _cells([alone[seed]]).issuperset(cells):
            changes = [
                _gain(runs[seed][task][metric], alone[seed][task][metric], _HIGHER_IS_BETTER[metric])
                for task, metric in cells
            ]
            gains.append(math.fsum(changes) / len(changes))
    return interval(gains, unpaired=len({*runs, *alone}) - len(gains))


def holm(p_values: Sequence[float | None], /) -> list[float | None]:
    """Return Holm's step-down adjustment for several tests; ``None`` (no test) stays ``None`` and is not counted.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979: the k-th smallest of m p
    values is multiplied by m - k + 1, made monotone, and cut off at 1.

    Example:
        >>> holm([0.04, 0.01, None, 0.03])
        [0.06, 0.03, None, 0.06]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = largest
    return adjusted


def gain_over_seeds_and_users(
    loss: Array, reference_loss: Array, weight: Array, positives: Array, /, *, draws: int = DRAWS
) -> Interval | None:
    """Return the gain in mean NE over a reference in per cent, with an interval over seeds and users.

    A bootstrap in both ways: each draw takes as many seeds and as many groups of users as there are, with replacement
    and independently. Method and reference meet the same seeds and users. NE is computed anew from the sums over the
    drawn groups: log loss per unit of weight, over the entropy of the base rate of these groups. (Owen, The pigeonhole
    bootstrap, Annals of Applied Statistics 1, 2007: the variance of such draws is not too small on average; cited
    from memory.)

    Quantiles of draws make intervals too short where there are few seeds. They are moved away from the mean by
    ``sqrt(n / (n - 1)) t / z`` for n seeds, so that without variation among users the interval is that of Student's t
    (as the expanded percentile interval of Hesterberg, What Teachers Should Know about the Bootstrap, arXiv 1411.5279,
    2014, does; the formula is that of R's package resample, ``ExpandProbs``). Every call uses the same draws.

    Args:
        loss: sums of the log losses of test rows; shape [seeds, tasks, groups].
        reference_loss: the same of the reference, for the same seeds.
        weight: sums of the rows' weights; shape [tasks, groups].
        positives: sums of the weights of positive rows; shape [tasks, groups].
        draws: number of draws.

    Returns:
        The interval, or None with fewer than two seeds or two groups. Draws in which the rows of a task have one class
        only are left out.

    Raises:
        ValueError: shapes do not agree.

    Example:
        >>> loss = np.array([[[50.0, 52.0, 48.0]], [[51.0, 52.0, 49.0]]])
        >>> found = gain_over_seeds_and_users(loss * 0.9, loss, np.full((1, 3), 100.0), np.full((1, 3), 30.0))
        >>> round(found.mean, 6), round(found.low, 6), round(found.high, 6)
        (10.0, 10.0, 10.0)
    """
    if loss.shape != reference_loss.shape or not loss.shape[1:] == weight.shape == positives.shape:
        raise ValueError(
            "Expected losses of shape [seeds, tasks, groups] for method and reference and sums of shape "
            f"[tasks, groups], found {loss.shape}, {reference_loss.shape}, {weight.shape} and {positives.shape}."
        )
    seeds, _, groups = loss.shape
    if seeds < 2 or groups < 2:
        return None
    of_groups, of_seeds = _drawn(groups, seeds, draws)
    drawn_weight, drawn_positives = weight @ of_groups, positives @ of_groups
    base_rate = drawn_positives / drawn_weight
    entropy = special.entr(base_rate) + special.entr(1 - base_rate)
    two_classes = (entropy > 0).all(axis=0)
    if two_classes.sum() < 2 or not two_classes[0]:
        return None
    base_loss = (entropy * drawn_weight)[:, two_classes]
    ne, reference = (
        ((sums @ of_groups)[:, :, two_classes] / base_loss).mean(axis=1) for sums in (loss, reference_loss)
    )
    gains = (100 * (reference - ne) / reference * of_seeds[:, two_classes]).sum(axis=0)
    mean = float(gains[0])
    tail = (1 - CONFIDENCE) / 2
    t, z = special.stdtrit(seeds - 1, 1 - tail), special.ndtri(1 - tail)
    low, high = mean + math.sqrt(seeds / (seeds - 1)) * t / z * (np.quantile(gains[1:], [tail, 1 - tail]) - mean)
    return Interval(mean, float(low), float(high))


@cache
def _drawn(groups: int, seeds: int, draws: int) -> tuple[Array, Array]:
    """Return how often each group and each seed is drawn; the first column is the sample itself, each once."""
    generator = np.random.default_rng(0)
    of_groups = generator.multinomial(groups, np.full(groups, 1 / groups), size=draws).T
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).T
    once = np.ones((groups, 1)), np.ones((seeds, 1))
    return np.concatenate([once[0], of_groups], axis=1), np.concatenate([once[1], of_seeds], axis=1) / seeds


def _shared_seeds(values: Mapping[int, float], reference: Mapping[int, float]) -> tuple[list[int], int]:
    here = {seed for seed, value in values.items() if math.isfinite(value)}
    there = {seed for seed, value in reference.items() if math.isfinite(value)}
    return sorted(here & there), len({*values, *reference}) - len(here & there)


def _gain(value: float, reference: float, higher_is_better: bool) -> float:
    if reference <= 0:
        raise ValueError(f"A relative change needs a reference above zero, found {reference}.")
    change = 100 * (value - reference) / reference
    return change if higher_is_better else -change


def _cells(runs: Iterable[TaskMetrics]) -> set[tuple[str, str]]:
    return {
        (task, metric)
        for run in runs
        for task, metrics in run.items()
        for metric, value in metrics.items()
        if metric in _HIGHER_IS_BETTER and math.isfinite(value)
    }
