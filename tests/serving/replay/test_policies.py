"""Policies: shares of items from their scores."""

import numpy as np
import pytest
import torch

from equipoise.errors import SettingError
from equipoise.serving.replay import RankingPolicy

SCORES = np.random.default_rng(0).normal(0, 30, (50, 7))


@pytest.mark.parametrize("temperature", [0.01, 1.0, 40.0])
def test_shares_are_those_of_a_softmax(temperature: float) -> None:
    expected = torch.softmax(torch.from_numpy(SCORES) / temperature, 1).numpy()
    np.testing.assert_allclose(RankingPolicy(temperature).probabilities(SCORES), expected, atol=1e-12)


def test_the_best_item_has_all_but_the_share_at_random() -> None:
    found = RankingPolicy(epsilon=0.2).probabilities(SCORES)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_allclose(found[np.arange(50), SCORES.argmax(1)], 0.8 + 0.2 / 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature should be a number from 0 up, found -1.0"),
        ({"temperature": float("nan")}, "temperature should be a number from 0 up, found nan"),
        ({"epsilon": 1.1}, "epsilon should be a share from 0 to 1, found 1.1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        RankingPolicy(**options)
