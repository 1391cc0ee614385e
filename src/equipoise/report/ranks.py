"""Methods compared over several data sets: average ranks, the Friedman test, critical differences, and the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from equipoise.report.statistics import CONFIDENCE

__all__ = ["RankComparison", "compare_ranks", "critical_difference", "pareto_front"]


@dataclass(frozen=True)
class RankComparison:
    """Ranks of methods over data sets.

    Attributes:
        average: method to its average rank, 1 is best; in that order.
        data_sets: the number of data sets.
        p: of the Friedman test in the form of Iman and Davenport; None with fewer than two data sets or three methods.
        critical_difference: of average ranks (Nemenyi); None with fewer than two data sets.
        cliques: the largest groups of neighbours within the critical difference, two methods at least.
    """

    average: Mapping[str, float]
    data_sets: int
    p: float | None
    critical_difference: float | None
    cliques: Sequence[tuple[str, ...]]


def compare_ranks(scores: Mapping[str, Mapping[str, float]], /) -> RankComparison:
    """Rank methods within each data set, and compare their average ranks.

    Source: Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006, section 3.2: the
    Friedman test, corrected by Iman and Davenport, then Nemenyi's critical difference. Equal scores share their mean
    rank.

    Args:
        scores: data set to method to score, lower is better; the same methods for each data set.

    Raises:
        ValueError: there is no data set, or a method has no score on one of them.

    Example:
        >>> found = compare_ranks({"one": {"a": 0.5, "b": 0.6, "c": 0.7}, "two": {"a": 0.2, "b": 0.3, "c": 0.3}})
        >>> found.average
        {'a': 1.0, 'b': 2.25, 'c': 2.75}
    """
    names = list(next(iter(scores.values()), {}))
    if not names or any(of_methods.keys() != set(names) for of_methods in scores.values()):
        raise ValueError("Expected the scores of the same methods on each data set, found others or none.")
    table = np.array([[of_methods[name] for name in names] for of_methods in scores.values()])
    means = stats.rankdata(table, axis=1).mean(axis=0)
    order = sorted(range(len(names)), key=lambda at: (means[at], names[at]))
    average = {names[at]: float(means[at]) for at in order}
    distance = critical_difference(len(names), len(table)) if len(table) > 1 and len(names) > 1 else None
    return RankComparison(average, len(table), _friedman(table), distance, _cliques(average, distance))


def critical_difference(methods: int, data_sets: int) -> float:
    """Return the difference of two average ranks from which they differ at level 0.05 (Nemenyi; Demšar 2006, eq. 6).

    Example:
        >>> round(critical_difference(4, 14), 2)
        1.25
    """
    range_of_means = float(stats.studentized_range.ppf(CONFIDENCE, methods, np.inf))
    return range_of_means / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * data_sets))


def pareto_front(points: Mapping[str, tuple[float, float]], /) -> list[str]:
    """Return the names that no other point matches or exceeds in both coordinates, by the first, highest first.

    Example:
        >>> pareto_front({"cheap": (1.0, 0.0), "good": (0.8, 1.0), "neither": (0.7, 0.5)})
        ['cheap', 'good']
    """
    front, best = [], -math.inf
    for name, (_, quality) in sorted(points.items(), key=lambda point: (-point[1][0], -point[1][1], point[0])):
        if quality > best:
            front.append(name)
            best = quality
    return front


def _friedman(scores: np.ndarray) -> float | None:
    """Return p of the Friedman test; scores of shape [data sets, methods]."""
    data_sets, methods = scores.shape
    if data_sets < 2 or methods < 3:
        return None
    if (scores == scores[:, :1]).all():
        return 1.0
    chi_squared = float(stats.friedmanchisquare(*scores.T).statistic)
    left = data_sets * (methods - 1) - chi_squared
    if left <= 1e-9 * chi_squared:
        return 0.0
    f = (data_sets - 1) * chi_squared / left
    return float(stats.f.sf(f, methods - 1, (methods - 1) * (data_sets - 1)))


def _cliques(average: Mapping[str, float], distance: float | None) -> list[tuple[str, ...]]:
    if distance is None:
        return []
    names, ranks = list(average), list(average.values())
    found: list[tuple[str, ...]] = []
    reached = 0
    for first, rank in enumerate(ranks):
        last = sum(other <= rank + distance for other in ranks)
        if last > reached and last - first > 1:
            found.append(tuple(names[first:last]))
        reached = max(reached, last)
    return found
