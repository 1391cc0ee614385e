"""Sensitivity to tuning: a method's errors over all trials, and its gains over a baseline tuned less or more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from equipoise.comparison.results import EQUAL_WEIGHTS
from equipoise.comparison.tuning import scores_of
from equipoise.report.evidence.suite import Setting

__all__ = ["Sensitivity", "average_spreads", "expected_best", "gains_by_baseline_trials", "sensitivities"]


@dataclass(frozen=True)
class Sensitivity:
    """One method's trials in one setting: mean validation errors over tasks and tuning seeds, lower is better.

    Attributes:
        name, label: of the method.
        errors: of the trials, best first; one that diverged counts as 1, or as the worst of the setting if that is
            more.
        diverged: the number of trials that diverged.
        better_than_baseline: share of the trials that beat the best trial of equal weights; None without one.
    """

    name: str
    label: str
    errors: Sequence[float]
    diverged: int
    better_than_baseline: float | None

    @property
    def best(self) -> float:
        """The lowest error."""
        return self.errors[0]

    @property
    def median(self) -> float:
        """The middle error, the mean of the two in the middle for an even number."""
        middle = len(self.errors) // 2
        return self.errors[middle] if len(self.errors) % 2 else (self.errors[middle - 1] + self.errors[middle]) / 2

    @property
    def worst(self) -> float:
        """The highest error."""
        return self.errors[-1]

    @property
    def spread(self) -> float:
        """The median over the best, in per cent above it: what an untuned trial costs."""
        return 100 * (self.median / self.best - 1)


def sensitivities(setting: Setting, /) -> list[Sensitivity]:
    """Return each method's trials; none for a method, or a setting, that was not tuned."""
    tuning = setting.results.tuning
    scores = {
        method.name: [score for score in scores_of(tuning, method.name).values() if score is not None]
        for method in setting.results.plan.methods
    }
    finite = [score for of_method in scores.values() for score in of_method if math.isfinite(score)]
    if not finite:
        return []
    worst = max(1.0, *finite)
    errors = {name: sorted(min(score, worst) for score in of_method) for name, of_method in scores.items() if of_method}
    baseline = errors.get(EQUAL_WEIGHTS)
    return [
        Sensitivity(
            name=method.name,
            label=method.label,
            errors=errors[method.name],
            diverged=sum(math.isinf(score) for score in scores[method.name]),
            better_than_baseline=None
            if baseline is None
            else sum(error < baseline[0] for error in errors[method.name]) / len(errors[method.name]),
        )
        for method in setting.results.plan.methods
        if method.name in errors
    ]


def average_spreads(settings: Sequence[Setting], /) -> dict[str, float]:
    """Return the mean :attr:`~Sensitivity.spread` of each method that was tuned in every setting with tuning."""
    tuned = [{found.name: found.spread for found in sensitivities(setting)} for setting in settings]
    tuned = [spreads for spreads in tuned if spreads]
    everywhere = [name for name in (tuned[0] if tuned else {}) if all(name in spreads for spreads in tuned)]
    return {name: fmean(spreads[name] for spreads in tuned) for name in everywhere}


def expected_best(errors: Sequence[float], trials: int, /) -> float:
    """Return the mean of the lowest of so many errors, drawn without replacement.

    The k-th lowest of K errors is the lowest of n draws with probability ``C(K - k, n - 1) / C(K, n)``. (Dodge et al.,
    Show Your Work, EMNLP 2019, report the same quantity for draws with replacement.)

    Example:
        >>> expected_best([1.0, 2.0, 3.0], 1), expected_best([1.0, 2.0, 3.0], 3)
        (2.0, 1.0)
    """
    ordered, count = sorted(errors), len(errors)
    ways = [math.comb(count - rank, trials - 1) for rank in range(1, count + 1)]
    return math.fsum(error * way for error, way in zip(ordered, ways, strict=True)) / math.comb(count, trials)


def gains_by_baseline_trials(method: Sensitivity, baseline: Sensitivity, /) -> list[float]:
    """Return the gain in per cent of a method's best trial over the best of 1, 2, … trials of the baseline."""
    references = [expected_best(baseline.errors, trials) for trials in range(1, len(baseline.errors) + 1)]
    return [100 * (reference - method.best) / reference for reference in references]
