"""The search for static weights finds them, ignores their common length, and goes on where it was stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from equipoise.comparison.audit.search import centred, search_weights

TASKS = ["click", "like", "buy"]
BEST = {"click": 0.25, "like": 1.0, "buy": 4.0}


def score(weights: Mapping[str, float]) -> float:
    """Return the squared distance of the logarithms from the best weights."""
    return sum((math.log(weights[task]) - math.log(BEST[task])) ** 2 for task in TASKS)


def test_the_search_comes_close_to_the_best_weights() -> None:
    found = search_weights(TASKS, score, trials=60)
    assert score(found) < score(dict.fromkeys(TASKS, 1.0)) / 4


def test_weights_have_a_geometric_mean_of_one() -> None:
    assert math.prod(search_weights(TASKS, score, trials=5).values()) == pytest.approx(1)
    assert centred({"click": 2.0, "like": 8.0}) == pytest.approx({"click": 0.5, "like": 2.0})


def test_equal_weights_are_the_first_trial() -> None:
    tried: list[Mapping[str, float]] = []
    search_weights(TASKS, score, trials=3, on_trial=lambda weights, _: tried.append(weights))
    assert tried[0] == pytest.approx(dict.fromkeys(TASKS, 1.0))


def test_a_search_that_was_stopped_ends_as_one_that_was_not() -> None:
    whole: list[tuple[Mapping[str, float], float]] = []
    best = search_weights(TASKS, score, trials=8, on_trial=lambda *trial: whole.append(trial))
    rest: list[tuple[Mapping[str, float], float]] = []
    again = search_weights(TASKS, score, trials=8, finished=whole[:3], on_trial=lambda *trial: rest.append(trial))
    assert again == best
    assert rest == whole[3:]
