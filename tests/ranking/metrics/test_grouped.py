"""Grouped AUC against the mean of scikit-learn's AUC of each group."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from equipoise.ranking.metrics import GroupedAUC, auc, grouped_areas, grouped_auc

NAN = float("nan")
steady = settings(deadline=None, derandomize=True)
some_rows = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([-2.0, 0.0, 0.5]), st.floats(-15, 15)),
        st.sampled_from([0.0, 1.0, 1.0, -1.0, NAN]),
        st.integers(-2, 4),
        st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 100)),
    ),
    max_size=60,
)

Rows = tuple[Tensor, Tensor, Tensor, Tensor]


def as_rows(found: list[tuple[float, float, int, float]]) -> Rows:
    logits, labels, groups, weight = torch.tensor(found, dtype=torch.float64).reshape(-1, 4).unbind(1)
    return logits, labels, groups.long(), weight


def by_hand(rows: Rows) -> tuple[float, int]:
    """The weighted mean of scikit-learn's areas, and the number of groups of one class."""
    logits, labels, groups, weight = (column.numpy() for column in rows)
    counts = (labels >= 0) & (weight > 0)
    areas, weights, left_out = [], [], 0
    for group in np.unique(groups[counts]):
        here = counts & (groups == group)
        if len(set(labels[here])) == 2:
            areas.append(roc_auc_score(labels[here], logits[here], sample_weight=weight[here]))
            weights.append(weight[here].sum())
        else:
            left_out += 1
    return (float(np.average(areas, weights=weights)) if areas else NAN), left_out


@steady
@given(rows=some_rows.map(as_rows))
def test_it_is_the_mean_of_the_groups_areas_weighted_by_their_rows(rows: Rows) -> None:
    logits, labels, groups, weight = rows
    expected, left_out = by_hand(rows)
    assert grouped_auc(*rows).item() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    missing = labels.where(labels >= 0, NAN)
    assert grouped_areas(logits, missing, weight, groups.double()).left_out == left_out


def test_one_group_has_the_plain_area_and_groups_of_one_row_have_none() -> None:
    logits, labels = torch.randn(50), (torch.rand(50) < 0.4).float()
    assert grouped_auc(logits, labels, torch.full((50,), 8)).item() == pytest.approx(auc(logits, labels).item())
    assert grouped_auc(logits, labels, torch.arange(50)).isnan()


def test_an_order_between_groups_counts_for_nothing() -> None:
    """A user who clicks on everything helps AUC, and no ranking."""
    logits, labels = torch.tensor([5.0, 4.0, -4.0, -5.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    groups = torch.tensor([1, 1, 2, 2])
    assert grouped_auc(logits, labels, groups).item() == 0
    assert grouped_auc(logits + 100 * groups, labels, groups).item() == 0


def test_a_prediction_that_is_nan_is_not_hidden() -> None:
    labels, groups = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([1, 1, 2, 2])
    assert grouped_auc(torch.tensor([1.0, 0.0, NAN, 1.0]), labels, groups).isnan()


def test_batches_that_split_groups_add_up_and_pickling_keeps_the_state() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(300, generator=generator), torch.rand(300, generator=generator)
    labels = (torch.rand(300, generator=generator) < 0.3).float()
    groups = torch.randint(0, 40, (300,), generator=generator)
    metric = GroupedAUC()
    for start in range(0, 300, 77):
        part = slice(start, start + 77)
        metric.update(logits[part], labels[part], groups[part], weight[part])
    metric = pickle.loads(pickle.dumps(metric))
    expected, left_out = by_hand((logits, labels, groups, weight))
    assert 0 < left_out < 20
    assert metric.compute().item() == pytest.approx(expected, rel=1e-9)


def test_groups_that_are_no_whole_numbers_are_refused() -> None:
    for wrong in (torch.zeros(3), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"Groups must be whole numbers of shape \[3\], found"):
            grouped_auc(torch.zeros(3), torch.zeros(3), wrong)
