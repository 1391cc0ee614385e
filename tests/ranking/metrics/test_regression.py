"""RMSE, MAE and R² against scikit-learn; far from zero, in pieces, and where they are not defined."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch import Tensor
from torchmetrics import Metric

from equipoise.ranking.metrics import MAE, R2, RMSE, mae, r2, rmse

NAN = float("nan")
steady = settings(deadline=None, derandomize=True)
PAIRS: dict[type[Metric], Callable[..., Tensor]] = {RMSE: rmse, MAE: mae, R2: r2}
every_metric = pytest.mark.parametrize("kind", PAIRS)
numbers = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
rows = st.lists(
    st.tuples(numbers, st.one_of(numbers, st.sampled_from([-1.0, NAN])), st.sampled_from([0.0, 0.5, 1.0, 7.0])),
    max_size=30,
).map(lambda found: torch.tensor(found, dtype=torch.float64).reshape(-1, 3).unbind(1))


def random_rows(size: int, *, around: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randn(size, generator=generator, dtype=torch.float64) + around
    predictions = targets + 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)
    targets[torch.rand(size, generator=generator) < 0.2] = NAN
    return predictions, targets, torch.rand(size, generator=generator) * 3


@steady
@given(rows=rows)
def test_the_values_are_scikit_learns_with_weights(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    predictions, targets, weight = rows
    counts = ~targets.isnan() & (weight > 0)
    assume(int(counts.sum()) > 1)
    truth, predicted, weights = (column[counts].numpy() for column in (targets, predictions, weight))
    assume(np.ptp(truth) > 1e-3)
    arguments = {"y_true": truth, "y_pred": predicted, "sample_weight": weights}
    assert rmse(*rows).item() == pytest.approx(sklearn_metrics.root_mean_squared_error(**arguments), rel=1e-9)
    assert mae(*rows).item() == pytest.approx(sklearn_metrics.mean_absolute_error(**arguments), rel=1e-9)
    assert r2(*rows).item() == pytest.approx(sklearn_metrics.r2_score(**arguments), rel=1e-9, abs=1e-9)


@every_metric
def test_batches_add_up_to_the_whole_and_reset_forgets(kind: type[Metric]) -> None:
    whole = random_rows(500)
    metric = kind()
    metric.update(*(column[:7] for column in whole))
    metric.reset()
    for start in range(0, 500, 77):
        metric.update(*(column[start : start + 77] for column in whole))
    assert metric.compute().item() == pytest.approx(PAIRS[kind](*whole).item(), rel=1e-12)


@every_metric
def test_forward_gives_the_batch_and_keeps_the_total(kind: type[Metric]) -> None:
    whole = random_rows(200)
    metric = kind()
    for part in (slice(0, 90), slice(90, 200)):
        batch = tuple(column[part] for column in whole)
        assert metric(*batch).item() == pytest.approx(PAIRS[kind](*batch).item(), rel=1e-12)
    assert metric.compute().item() == pytest.approx(PAIRS[kind](*whole).item(), rel=1e-12)


def test_targets_far_from_zero_keep_their_variance() -> None:
    """Sums of squares of times in seconds since 1970 would lose it."""
    near, far = R2(), R2()
    for start in range(0, 500, 50):
        for metric, around in ((near, 0.0), (far, 1.7e9)):
            metric.update(*(column[start : start + 50] for column in random_rows(500, around=around)))
    assert far.compute().item() == pytest.approx(near.compute().item(), abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.7e9 + 0.3])
def test_r2_of_targets_that_are_all_the_same_is_not_defined(constant: float) -> None:
    metric = R2()
    for size in (3, 4):
        metric.update(torch.randn(size), torch.full((size,), constant, dtype=torch.float64), torch.rand(size))
    assert math.isnan(metric.compute().item())


@every_metric
def test_without_a_row_there_is_no_value(kind: type[Metric]) -> None:
    metric = kind()
    metric.update(torch.empty(0), torch.empty(0))
    metric.update(torch.zeros(2), torch.tensor([NAN, NAN]))
    metric.update(torch.zeros(2), torch.ones(2), torch.zeros(2))
    assert metric.compute().isnan()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    assert metric.compute().isfinite()


@every_metric
def test_a_prediction_that_is_nan_is_not_hidden_and_one_without_a_target_does_not_count(kind: type[Metric]) -> None:
    targets = torch.tensor([1.0, 2.0, NAN])
    assert PAIRS[kind](torch.tensor([NAN, 1.0, 0.0]), targets).isnan()
    assert PAIRS[kind](torch.tensor([0.0, 1.0, NAN]), targets).isfinite()


@every_metric
def test_a_cast_model_and_a_pickle_keep_the_state_in_double(kind: type[Metric]) -> None:
    model = torch.nn.ModuleDict({"metric": kind()}).to(torch.bfloat16)
    model["metric"].update(*random_rows(50))
    copy = pickle.loads(pickle.dumps(model))
    assert copy["metric"].compute().item() == PAIRS[kind](*random_rows(50)).item()
    assert not copy["metric"].compute().requires_grad


@pytest.mark.parametrize("function", PAIRS.values())
def test_bad_input_is_named(function: Callable[..., Tensor]) -> None:
    three = torch.zeros(3)
    with pytest.raises(ValueError, match=r"Predictions, labels .* one shape \[B\], found predictions \[\[3\]\]"):
        function(three, torch.zeros(2))
    with pytest.raises(ValueError, match=r"Targets must be finite, or NaN where missing, found inf"):
        function(three, torch.tensor([0.0, math.inf, 1.0]))
    with pytest.raises(ValueError, match=r"Weights must be finite and not negative, found -1"):
        function(three, three, torch.tensor([0.0, -1.0, 1.0]))
