"""The metrics against scikit-learn and closed forms; in pieces, across processes, pickled."""

from __future__ import annotations

import importlib
import math
import pickle
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch import Tensor
from torchmetrics import Metric

from equipoise.ranking.metrics import (
    AUC,
    Calibration,
    LogLoss,
    NormalizedEntropy,
    auc,
    calibration,
    log_loss,
    normalized_entropy,
)

NAN = float("nan")
# The same examples every time, and no failure because the machine is busy.
steady = settings(deadline=None, derandomize=True)
PAIRS: dict[type[Metric], Callable[..., Tensor]] = {
    AUC: auc,
    NormalizedEntropy: normalized_entropy,
    LogLoss: log_loss,
    Calibration: calibration,
}
every_metric = pytest.mark.parametrize("kind", PAIRS)

Rows = tuple[Tensor, Tensor, Tensor]


def as_rows(rows: list[tuple[float, float, float]]) -> Rows:
    columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(1)
    return columns[0], columns[1], columns[2]


# Few distinct scores, so that ties are common; weights of zero; missing labels.
scores = st.one_of(st.sampled_from([-2.0, 0.0, 0.5]), st.floats(-15, 15))
weights = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 100))
some_rows = st.lists(st.tuples(scores, st.sampled_from([0.0, 1.0, NAN]), weights), max_size=40).map(as_rows)


def counted(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, labels, weight = rows
    counts = ~labels.isnan() & (weight > 0)
    return logits[counts].numpy(), labels[counts].numpy(), weight[counts].numpy()


def random_rows(size: int, *, seed: int = 0, tasks: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, tasks, generator=generator)
    labels = (torch.rand(size, tasks, generator=generator) < logits.sigmoid()).float()
    labels[torch.rand(size, tasks, generator=generator) < 0.2] = NAN
    return logits, labels, torch.rand(size, generator=generator) * 3


@steady
@given(rows=some_rows)
def test_auc_is_scikit_learns_with_weights_and_ties(rows: Rows) -> None:
    logits, labels, weight = counted(rows)
    assume(len(set(labels)) == 2)
    expected = sklearn_metrics.roc_auc_score(labels, logits, sample_weight=weight)
    assert auc(*rows).item() == pytest.approx(expected, abs=1e-12)


@steady
@given(rows=some_rows)
def test_auc_is_the_weighted_share_of_pairs_in_the_right_order(rows: Rows) -> None:
    logits, labels, weight = counted(rows)
    right = total = 0.0
    for score, w in zip(logits[labels == 1], weight[labels == 1], strict=True):
        for other, v in zip(logits[labels == 0], weight[labels == 0], strict=True):
            right += w * v * (1.0 if score > other else 0.5 if score == other else 0.0)
            total += w * v
    expected = right / total if total else NAN
    assert auc(*rows).item() == pytest.approx(expected, abs=1e-12, nan_ok=True)


@steady
@given(rows=some_rows)
def test_log_loss_is_scikit_learns_with_weights(rows: Rows) -> None:
    logits, labels, weight = counted(rows)
    assume(len(labels))
    chances = 1 / (1 + np.exp(-logits))
    expected = sklearn_metrics.log_loss(labels, chances, sample_weight=weight, labels=[0, 1])
    assert log_loss(*rows).item() == pytest.approx(expected, rel=1e-9)


@steady
@given(rows=some_rows)
def test_normalized_entropy_is_log_loss_over_that_of_the_best_constant(rows: Rows) -> None:
    _, labels, weight = counted(rows)
    assume(len(set(labels)) == 2)
    rate = np.average(labels, weights=weight)
    constant = torch.full_like(rows[0], math.log(rate / (1 - rate)))
    expected = log_loss(*rows) / log_loss(constant, *rows[1:])
    assert normalized_entropy(*rows).item() == pytest.approx(expected.item(), rel=1e-9)
    assert normalized_entropy(constant, *rows[1:]).item() == pytest.approx(1, rel=1e-9)


@steady
@given(rows=some_rows)
def test_calibration_is_mean_prediction_over_mean_label(rows: Rows) -> None:
    logits, labels, weight = counted(rows)
    assume(labels.any())
    chances = 1 / (1 + np.exp(-logits))
    expected = np.average(chances, weights=weight) / np.average(labels, weights=weight)
    assert calibration(*rows).item() == pytest.approx(expected, rel=1e-9)


@steady
@given(rows=some_rows, repeats=st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_a_weight_of_n_is_n_copies_of_the_row(rows: Rows, repeats: list[int]) -> None:
    logits, labels, _ = rows
    count = torch.tensor(repeats[: len(logits)], dtype=torch.int64)
    for function in PAIRS.values():
        copied = function(logits.repeat_interleave(count), labels.repeat_interleave(count))
        assert function(logits, labels, count).item() == pytest.approx(copied.item(), rel=1e-9, nan_ok=True)


@steady
@given(rows=some_rows)
def test_missing_labels_and_zero_weights_are_as_rows_that_are_not_there(rows: Rows) -> None:
    logits, labels, weight = rows
    counts = ~labels.isnan() & (weight > 0)
    poisoned = logits.where(counts, NAN)
    for function in PAIRS.values():
        expected = function(logits[counts], labels[counts], weight[counts]).item()
        assert function(poisoned, labels, weight).item() == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("labels", "defined"),
    [
        ([], set()),
        ([NAN, NAN], set()),
        ([0.0, 0.0], {log_loss}),
        ([1.0, 1.0], {log_loss, calibration}),
        ([0.0, 1.0], set(PAIRS.values())),
    ],
)
def test_what_is_not_defined_is_nan(labels: list[float], defined: set[Callable[..., Tensor]]) -> None:
    # Weights whose running sums are not exact: one class must be seen as one class all the same.
    weight = torch.tensor([0.1, 0.7])[: len(labels)]
    for kind, function in PAIRS.items():
        metric = kind()
        metric.update(torch.tensor([0.3, -0.2])[: len(labels)], torch.tensor(labels), weight)
        assert metric.compute().isfinite().item() == (function in defined)
        assert metric.compute().isnan().item() == (function not in defined)


@every_metric
def test_a_prediction_that_is_nan_is_not_hidden(kind: type[Metric]) -> None:
    metric = kind()
    metric.update(torch.tensor([NAN, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert metric.compute().isnan()


def test_infinite_logits_are_certain_predictions() -> None:
    logits = torch.tensor([math.inf, -math.inf])
    assert log_loss(logits, torch.tensor([1.0, 0.0])).item() == 0
    assert log_loss(logits, torch.tensor([0.0, 0.0])).item() == math.inf
    assert auc(logits, torch.tensor([1.0, 0.0])).item() == 1
    assert calibration(logits, torch.tensor([1.0, 0.0])).item() == 1


@every_metric
def test_batches_add_up_to_the_whole_and_reset_forgets(kind: type[Metric]) -> None:
    logits, labels, weight = random_rows(500)
    rows = (logits[:, 0], labels[:, 0], weight)
    metric = kind()
    metric.update(*(column[:7] for column in rows))
    metric.reset()
    for start in range(0, 500, 77):
        metric.update(*(column[start : start + 77] for column in rows))
    assert metric.compute().item() == pytest.approx(PAIRS[kind](*rows).item(), rel=1e-12)


@every_metric
def test_forward_gives_the_batch_and_keeps_the_total(kind: type[Metric]) -> None:
    logits, labels, weight = random_rows(200)
    rows = (logits[:, 0], labels[:, 0], weight)
    metric = kind()
    for part in (slice(0, 90), slice(90, 200)):
        batch = tuple(column[part] for column in rows)
        assert metric(*batch).item() == pytest.approx(PAIRS[kind](*batch).item(), rel=1e-12)
    assert metric.compute().item() == pytest.approx(PAIRS[kind](*rows).item(), rel=1e-12)


@every_metric
def test_pickling_keeps_the_state(kind: type[Metric]) -> None:
    logits, labels, weight = random_rows(50)
    metric = kind()
    metric.update(logits[:, 0], labels[:, 0], weight)
    copy = pickle.loads(pickle.dumps(metric))
    for each in (metric, copy):
        each.update(logits[:9, 0], labels[:9, 0])
    assert torch.equal(copy.compute(), metric.compute())


@every_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_what_they_say_in_double(kind: type[Metric], dtype: torch.dtype) -> None:
    logits, labels, weight = random_rows(3000)
    half = logits[:, 0].to(dtype)
    metric = kind()
    metric.update(half, labels[:, 0].to(dtype), weight)
    value = metric.compute()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(PAIRS[kind](half.double(), labels[:, 0], weight).item(), rel=1e-12)


@every_metric
def test_a_metric_inside_a_model_that_is_cast_still_sums_in_double(kind: type[Metric]) -> None:
    rows = tuple(column.reshape(-1)[:3000] for column in random_rows(3000))
    model = torch.nn.ModuleDict({"metric": kind()}).to(torch.bfloat16)
    for start in range(0, 3000, 300):
        model["metric"].update(*(column[start : start + 300] for column in rows))
    assert model["metric"].compute().item() == pytest.approx(PAIRS[kind](*rows).item(), rel=1e-12)


@every_metric
def test_gradients_of_logits_are_not_kept_alive(kind: type[Metric]) -> None:
    metric = kind()
    metric(torch.randn(4, requires_grad=True), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert not metric.compute().requires_grad


@pytest.mark.parametrize("function", PAIRS.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_minus_one_is_a_missing_label(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    logits = torch.tensor([0.3, -2.0, 1.5, 0.1, 0.7])
    labels = torch.tensor([1, -1, 0, -1, 1])
    there = labels >= 0
    assert function(logits, labels.to(dtype)) == function(logits[there], labels[there].float())


@pytest.mark.parametrize("function", PAIRS.values())
def test_bad_input_is_named(function: Callable[..., Tensor]) -> None:
    three = torch.zeros(3)
    with pytest.raises(ValueError, match=r"one shape \[B\], found logits \[\[3\]\], labels \[\[2\]\]"):
        function(three, torch.zeros(2))
    with pytest.raises(ValueError, match=r"weight \[\[2\]\]"):
        function(three, three, torch.zeros(2))
    with pytest.raises(ValueError, match=r"one shape \[B\]"):
        function(torch.zeros(3, 1), torch.zeros(3, 1))
    for wrong in (2.0, 0.5, -2.0, math.inf):
        with pytest.raises(ValueError, match=f"Labels must be 0, 1, or NaN or −1 where missing, found {wrong}"):
            function(three, torch.tensor([0.0, wrong, 1.0]))
    for wrong in (-0.5, NAN, math.inf):
        with pytest.raises(ValueError, match=f"Weights must be finite and not negative, found {wrong}"):
            function(three, three, torch.tensor([0.0, wrong, 1.0]))


def test_without_torchmetrics_functions_work_and_a_class_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for name in [name for name in sys.modules if name.startswith("equipoise.ranking.metrics")]:
        monkeypatch.delitem(sys.modules, name)
    metrics = importlib.import_module("equipoise.ranking.metrics")
    assert metrics.auc(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])).item() == 1
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[ranking\]' in a clone"):
        _ = metrics.AUC


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.97])
def test_auc_without_weights_is_that_with_equal_weights(rate: float) -> None:
    """Rows of weight 1 take another way: values are sorted alone."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3000, generator=generator).mul(20).round()  # with ties
    labels = (torch.rand(3000, generator=generator) < rate).float()
    found = auc(logits, labels).item()
    assert found == auc(logits, labels, torch.full((3000,), 2.0)).item()
    assert found == pytest.approx(sklearn_metrics.roc_auc_score(labels, logits), abs=1e-12)


def test_auc_without_weights_is_nan_where_a_logit_is_or_a_class_is_missing() -> None:
    assert math.isnan(auc(torch.tensor([1.0, NAN, 0.0]), torch.tensor([1.0, 0.0, 0.0])).item())
    assert math.isnan(auc(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])).item())


def test_sums_over_more_rows_than_are_taken_at_a_time_are_those_of_all() -> None:
    rows = (1 << 18) + 1000
    logits = torch.randn(rows, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(rows) % 5 == 0).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
    assert log_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-12)
    assert calibration(logits, labels).item() == pytest.approx(
        (logits.double().sigmoid().sum() / labels.sum()).item(), rel=1e-12
    )
