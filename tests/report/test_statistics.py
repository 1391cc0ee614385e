"""Paired statistics agree with scipy and closed forms, and are defined where seeds are few or missing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from equipoise.report.statistics import (
    delta_m,
    gain_over_seeds_and_users,
    holm,
    interval,
    paired_comparison,
    relative_gain,
)

finite = st.floats(-1e3, 1e3, allow_nan=False)


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8))
def test_paired_comparison_agrees_with_scipy_on_both_columns(pairs):
    values, reference = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    found = paired_comparison(values, reference)
    differences = [a - b for a, b in pairs]
    if found.p is None or np.std(differences) < 1e-6:
        return
    expected = stats.ttest_rel(*zip(*pairs, strict=True))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_interval_is_the_closed_form_of_student():
    differences = [0.3, 0.1, 0.25, 0.4, 0.2]
    half = stats.t.ppf(0.975, 4) * np.std(differences, ddof=1) / math.sqrt(5)
    found = interval(differences)
    assert found.mean == pytest.approx(0.25)
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half))
    assert found.p == pytest.approx(2 * stats.t.sf(0.25 / (np.std(differences, ddof=1) / math.sqrt(5)), 4))


def test_for_two_seeds_the_interval_is_known_by_hand():
    # t with one degree of freedom is the Cauchy distribution: its 97.5 % quantile is tan(0.475 pi).
    found = interval([1.0, 3.0])
    assert found.high == pytest.approx(2 + math.tan(0.475 * math.pi))
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2))


def test_the_interval_excludes_zero_exactly_when_p_is_below_five_per_cent():
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(300):
        found = interval(list(rng.normal(1.0, 1.0, 4)))
        verdicts.add(found.verdict)
        assert (found.verdict in {"above", "below"}) == (found.p < 0.05)
    assert verdicts >= {"above", "unclear"}


def test_pairing_cancels_what_a_seed_does_to_both_sides():
    seed_effect = {0: 5.0, 1: -3.0, 2: 40.0}
    paired = paired_comparison({seed: shift + 1 + 0.01 * seed for seed, shift in seed_effect.items()}, seed_effect)
    assert paired.verdict == "above"
    assert paired.mean == pytest.approx(1.01)


@pytest.mark.parametrize("missing", [{}, {2: math.nan}])
def test_seeds_that_one_side_lacks_are_left_out_and_counted(missing):
    found = paired_comparison({0: 1.0, 1: 2.0, **missing}, {0: 0.5, 1: 1.0, 2: 9.0})
    assert (found.pairs, found.unpaired) == (2, 1)
    assert found.mean == 0.75


def test_one_seed_gives_a_mean_but_neither_interval_nor_test():
    found = interval([0.5])
    assert (found.pairs, found.mean, found.low, found.high, found.p) == (1, 0.5, None, None, None)
    assert found.verdict == "untested"


def test_no_shared_seed_gives_nothing():
    found = paired_comparison({0: 1.0}, {1: 1.0})
    assert (found.pairs, found.unpaired, found.mean, found.verdict) == (0, 2, None, "untested")


def test_identical_values_differ_by_nothing_with_certainty():
    found = paired_comparison({0: 0.6, 1: 0.7}, {0: 0.6, 1: 0.7})
    assert (found.mean, found.low, found.high, found.p, found.verdict) == (0.0, 0.0, 0.0, 1.0, "unclear")


def test_a_constant_difference_is_not_called_significant():
    found = paired_comparison({0: 0.1 + 0.2, 1: 0.6}, {0: 0.2, 1: 0.5})
    assert found.mean == pytest.approx(0.1)
    assert (found.p, found.verdict) == (None, "untested")


def test_a_difference_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="must be finite"):
        interval([1.0, math.inf])


def test_ne_gain_is_the_definition_with_better_upwards():
    found = relative_gain({0: 0.63, 1: 0.60}, {0: 0.70, 1: 0.50}, higher_is_better=False)
    assert found.mean == pytest.approx((10.0 - 20.0) / 2)
    assert relative_gain({0: 0.9}, {0: 0.75}, higher_is_better=True).mean == pytest.approx(20)


def test_a_reference_of_zero_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="above zero"):
        relative_gain({0: 0.5}, {0: 0.0}, higher_is_better=False)


def run(auc, ne):
    return {"click": {"auc": auc, "ne": ne, "calibration": 99.0}, "like": {"auc": 0.5, "ne": 1.0}}


def test_delta_m_averages_tasks_and_metrics_with_their_own_signs():
    found = delta_m({0: run(0.88, 0.45)}, {0: run(0.80, 0.50)})
    assert found.mean == pytest.approx((10 + 10 + 0 + 0) / 4)
    assert delta_m({0: run(0.72, 0.55)}, {0: run(0.80, 0.50)}).mean == pytest.approx(-5)


def test_delta_m_against_oneself_is_zero():
    alone = {seed: run(0.8 + seed / 100, 0.5) for seed in range(3)}
    assert delta_m(alone, alone).mean == 0


def test_delta_m_leaves_out_a_seed_with_a_missing_cell_and_a_task_nobody_could_score():
    unscored = {"rare": {"auc": math.nan, "ne": math.nan}}
    joint = {0: {**run(0.88, 0.45), **unscored}, 1: {**run(0.80, math.nan), **unscored}}
    alone = {0: {**run(0.80, 0.50), **unscored}, 1: {**run(0.80, 0.50), **unscored}}
    found = delta_m(joint, alone)
    assert (found.pairs, found.unpaired) == (1, 1)
    assert found.mean == pytest.approx(5)


def test_delta_m_without_a_common_cell_has_no_value():
    assert delta_m({0: {"click": {"auc": 0.7}}}, {0: {"like": {"auc": 0.7}}}).mean is None


def test_holm_is_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_was_not_tested_and_never_passes_one():
    assert holm([None, 0.6, 0.9]) == [None, 1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_p_values_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        assert p <= found <= min(1.0, p * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(adjusted)[order]) == sorted(adjusted)


def of_users(*, seeds=6, tasks=2, groups=12):
    """Return losses of a method and its reference, weights and positives, all plausible and random."""
    rng = np.random.default_rng(7)
    weight = rng.integers(50, 90, (tasks, groups)).astype(float)
    positives = weight * rng.uniform(0.05, 0.4, (tasks, groups))
    reference = weight * rng.uniform(0.3, 0.5, (tasks, groups)) * rng.uniform(0.95, 1.05, (seeds, tasks, groups))
    return reference * rng.uniform(0.9, 1.02, (seeds, tasks, groups)), reference, weight, positives


def test_the_bootstrap_over_seeds_and_users_is_that_of_loops():
    loss, reference, weight, positives = of_users()
    seeds, tasks, groups = loss.shape
    generator = np.random.default_rng(0)
    drawn_groups = generator.multinomial(groups, np.full(groups, 1 / groups), size=300)
    drawn_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=300)

    def mean_ne(losses, chosen):
        of_tasks = []
        for task in range(tasks):
            total = sum(chosen[at] * weight[task, at] for at in range(groups))
            rate = sum(chosen[at] * positives[task, at] for at in range(groups)) / total
            entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
            of_tasks.append(sum(chosen[at] * losses[task, at] for at in range(groups)) / total / entropy)
        return sum(of_tasks) / tasks

    def gain(chosen_seeds, chosen_groups):
        total = 0.0
        for seed in range(seeds):
            ours, theirs = (mean_ne(sums[seed], chosen_groups) for sums in (loss, reference))
            total += chosen_seeds[seed] * 100 * (1 - ours / theirs)
        return total / seeds

    mean = gain([1] * seeds, [1] * groups)
    draws = [gain(*chosen) for chosen in zip(drawn_seeds, drawn_groups, strict=True)]
    wider = math.sqrt(seeds / (seeds - 1)) * stats.t.ppf(0.975, seeds - 1) / stats.norm.ppf(0.975)
    expected = [mean + wider * (end - mean) for end in np.quantile(draws, [0.025, 0.975])]
    found = gain_over_seeds_and_users(loss, reference, weight, positives, draws=300)
    assert found.mean == pytest.approx(mean)
    assert [found.low, found.high] == pytest.approx(expected)
    assert found.excludes_zero == (expected[0] > 0 or expected[1] < 0)


def test_without_variation_among_users_the_bootstrap_gives_the_interval_of_student():
    gains = np.array([0.3, 0.1, 0.25, 0.4, 0.2, 0.35, 0.15, 0.3])
    reference = np.full((8, 1, 10), 20.0)
    loss = reference * (1 - gains[:, None, None] / 100)
    weight = np.full((1, 10), 50.0)
    found, seeds = gain_over_seeds_and_users(loss, reference, weight, weight / 4, draws=20_000), interval(list(gains))
    assert found.mean == pytest.approx(seeds.mean)
    assert (found.low, found.high) == pytest.approx((seeds.low, seeds.high), rel=0.05)


def test_without_variation_among_seeds_the_bootstrap_gives_the_closed_form_over_groups():
    groups, seeds = 64, 5
    of_group = np.random.default_rng(1).normal(0.4, 0.05, groups) * 50
    reference, weight = np.full((seeds, 1, groups), 25.0), np.full((1, groups), 50.0)
    loss = np.broadcast_to(of_group, (seeds, 1, groups))
    found = gain_over_seeds_and_users(loss, reference, weight, weight / 4, draws=20_000)
    standard_error = 100 * np.std(of_group / 25) / math.sqrt(groups)
    half = stats.t.ppf(0.975, seeds - 1) * math.sqrt(seeds / (seeds - 1)) * standard_error
    assert found.mean == pytest.approx(100 * (1 - of_group.mean() / 25))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_users_that_are_hard_for_both_sides_do_not_widen_the_interval():
    loss, reference, weight, _ = of_users()
    hard = np.random.default_rng(3).uniform(0.2, 5, (1, 1, 12))
    even = np.full_like(weight, 60.0)

    def width(losses, references):
        found = gain_over_seeds_and_users(losses, references, even, even / 4)
        return found.high - found.low

    shift = loss.mean(axis=2, keepdims=True) / reference.mean(axis=2, keepdims=True)
    assert width(reference * hard * shift, reference * hard) == pytest.approx(
        width(reference * shift, reference), rel=0.1
    )


def test_one_seed_or_one_group_or_one_class_has_no_interval_over_users():
    loss, reference, weight, positives = of_users()
    assert gain_over_seeds_and_users(loss[:1], reference[:1], weight, positives) is None
    assert gain_over_seeds_and_users(loss[..., :1], reference[..., :1], weight[:, :1], positives[:, :1]) is None
    assert gain_over_seeds_and_users(loss, reference, weight, positives * 0) is None
    with pytest.raises(ValueError, match=r"Expected losses of shape \[seeds, tasks, groups\]"):
        gain_over_seeds_and_users(loss, reference, weight[:1], positives)
