"""PIVRG's weights by scores, against a plain computation."""

import numpy as np
import pytest
import torch

from equipoise.forks import PIVRG, Bargaining
from tests.forks.test_balancing_forks import rows, weigh

NAMES = ["a", "b", "c", "d"]


def preferences(scores: list[float], bound: float, temperature: float) -> np.ndarray:
    s = np.array(scores)
    T = max((s.max() - s.min()) / np.log(bound), temperature)
    shares = np.exp(s / T)
    return len(s) * shares / shares.sum()


@pytest.mark.parametrize("scores", [[60.0, 95.0, 70.0, 99.0], [60.0, 61.0, 62.0, 60.5]])
def test_preferences_follow_the_scores_within_the_bound(scores: list[float]) -> None:
    fork = PIVRG(NAMES, bound=1.8, temperature=20.0)
    fork.note_scores(dict(zip(NAMES, scores, strict=True)))
    found = fork.current_preferences()
    np.testing.assert_allclose(found, preferences(scores, 1.8, 20.0), rtol=1e-6)
    assert found.max() / found.min() <= 1.8 + 1e-6


def test_it_is_fairgrad_with_these_preferences() -> None:
    fork, plain = PIVRG(NAMES, task_weights=[9, 1, 1, 1]), PIVRG(NAMES)
    fork.note_scores({"a": 50.0, "b": 90.0, "c": 70.0, "d": 60.0})
    expected = Bargaining(NAMES, exponent=2.0, task_weights=fork.current_preferences().tolist())
    found, wanted = weigh(fork, rows(0)), weigh(expected, rows(0))
    torch.testing.assert_close(found / found.norm(), wanted / wanted.norm(), rtol=1e-5, atol=0)
    before = Bargaining(NAMES, exponent=2.0)
    torch.testing.assert_close(weigh(plain, rows(0)), weigh(before, rows(0)), rtol=1e-6, atol=0)


def test_scores_are_kept_where_none_is_known_and_matched_by_name() -> None:
    fork = PIVRG(NAMES)
    fork.note_scores({"a": 50.0, "b": 90.0, "c": 70.0, "d": 60.0})
    fork.note_scores({"a": float("nan"), "b": 80.0, "other": 1.0})
    assert fork.scores.tolist() == [50.0, 80.0, 70.0, 60.0]
    other = PIVRG(["d", "a"])
    other.load_state_dict(fork.state_dict(), strict=False)
    assert other.scores.tolist() == [60.0, 50.0]
    fork.reset_parameters()
    assert not fork.scores.any()


@pytest.mark.parametrize(("bound", "temperature"), [(1.0, 10.0), (2.0, 0.0), (float("inf"), 1.0)])
def test_options_out_of_range_are_refused(bound: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="bound must be above 1 and temperature positive, found"):
        PIVRG(2, bound=bound, temperature=temperature)
