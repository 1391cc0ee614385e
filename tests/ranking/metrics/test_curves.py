"""Calibration curves: bins of equal rows, their means by hand, ties, weights and regressions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve as sklearn_curve

from equipoise.ranking.metrics import calibration_curve

NAN = float("nan")


def drawn(rows: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.rand(rows, generator=generator, dtype=torch.float64) ** 2
    return predictions, (torch.rand(rows, generator=generator) < predictions).double()


def test_the_curve_is_scikit_learns_by_quantiles() -> None:
    predictions, labels = drawn()
    rates, means = sklearn_curve(labels.numpy(), predictions.numpy(), n_bins=10, strategy="quantile")
    found = calibration_curve(predictions, labels, bins=10)
    assert [part["rows"] for part in found] == [300] * 10
    assert [part["rate"] for part in found] == pytest.approx(rates.tolist(), abs=0.004)  # a row more or less
    assert [part["prediction"] for part in found] == pytest.approx(means.tolist(), abs=0.002)


def test_true_probabilities_lie_on_the_diagonal_within_the_error() -> None:
    found = calibration_curve(*drawn(20_000))
    off = np.array([(part["rate"] - part["prediction"]) / part["error"] for part in found])
    assert len(found) == 15
    assert np.abs(off).max() < 3.5
    assert np.mean(off**2) == pytest.approx(1, abs=0.7)


def test_missing_labels_and_rows_without_weight_are_left_out_and_weights_are_copies() -> None:
    predictions = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.5])
    labels = torch.tensor([0.0, 1.0, NAN, 1.0, 1.0])
    weight = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0])
    (found,) = calibration_curve(predictions, labels, weight, bins=1)
    assert found["rows"] == 3
    assert found["prediction"] == pytest.approx((0.3 + 0.2 + 0.9) / 5)
    assert found["rate"] == pytest.approx(2 / 5)


def test_equal_predictions_share_a_bin_whatever_the_order_of_the_rows() -> None:
    predictions = torch.tensor([0.2] * 70 + [0.6] * 30)
    labels = (torch.arange(100) % 3 == 0).double()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    found = calibration_curve(predictions, labels)
    assert [part["rows"] for part in found] == [70, 30]
    shuffled = calibration_curve(predictions[order], labels[order])
    assert [part["rate"] for part in shuffled] == pytest.approx([part["rate"] for part in found])


def test_a_regression_has_the_mean_target() -> None:
    targets = torch.arange(-10.0, 10.0)
    found = calibration_curve(targets + 1, targets, bins=4)
    assert [part["rate"] for part in found] == [-8.0, -3.0, 2.0, 7.0]
    assert [part["prediction"] for part in found] == [-7.0, -2.0, 3.0, 8.0]


def test_without_a_row_there_is_no_curve() -> None:
    assert calibration_curve(torch.rand(2), torch.tensor([NAN, NAN])) == []
    assert calibration_curve(torch.empty(0), torch.empty(0)) == []
