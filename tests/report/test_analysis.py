"""The report's numbers are means over seeds and paired comparisons of the runs in the folder."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from equipoise.comparison.result_folder import ResultFolder
from equipoise.report.analysis import analyse, has_natural_view
from equipoise.report.diverged import with_diverged_counted


def rewrite(folder, change):
    """Rewrite every run of the folder, changed by ``change``."""
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        change(run)
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))


def by_hand(folder, method, metric, view="test"):
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    return np.array(
        [
            [run[view][task][metric] for task in run[view]]
            for run in runs
            if run["method"] == method and run["status"] == "ok"
        ]
    )


@pytest.mark.parametrize("view", ["test", "test_natural"])
def test_means_and_gains_are_those_computed_by_hand(comparison, view):
    folder = comparison()
    found = analyse(ResultFolder(folder).results(), view).method("multibalance")
    ours, equal = by_hand(folder, "multibalance", "ne", view), by_hand(folder, "equal", "ne", view)
    assert found.ne == pytest.approx(ours.mean())
    gains = 100 * (equal.mean(1) - ours.mean(1)) / equal.mean(1)
    assert found.ne_gain.mean == pytest.approx(gains.mean())
    assert found.ne_gain.over_seeds.p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    coupon = 100 * (equal[:, 3] - ours[:, 3]) / equal[:, 3]
    assert found.tasks["coupon"].gains["ne"].mean == pytest.approx(coupon.mean())


def test_transfer_compares_with_training_alone(comparison):
    folder = comparison()
    equal = analyse(ResultFolder(folder).results()).method("equal")
    joint, alone = by_hand(folder, "equal", "auc"), by_hand(folder, "single-task", "auc")
    assert equal.tasks["multiple"].transfer["auc"].mean == pytest.approx((joint - alone)[:, 2].mean())
    assert equal.tasks["multiple"].transfer["auc"].better
    assert equal.ne_gain is None


def test_delta_m_averages_both_metrics_over_all_tasks(comparison):
    folder = comparison()
    found = analyse(ResultFolder(folder).results()).method("pub").delta_m
    auc = by_hand(folder, "pub", "auc") / by_hand(folder, "single-task", "auc") - 1
    ne = 1 - by_hand(folder, "pub", "ne") / by_hand(folder, "single-task", "ne")
    assert found.mean == pytest.approx(100 * (auc.mean() + ne.mean()) / 2)


def test_holm_counts_every_test_of_its_table(comparison):
    analysis = analyse(ResultFolder(comparison(methods=("equal", "multibalance", "pub", "clippy"))).results())
    raw = sorted(entry.ne_gain.over_seeds.p for entry in analysis.methods if entry.ne_gain)
    assert min(entry.ne_gain.adjusted_p for entry in analysis.methods if entry.ne_gain) == pytest.approx(3 * raw[0])
    cells = [entry.tasks[task].gains["ne"] for entry in analysis.methods if entry.ne_gain for task in analysis.tasks]
    smallest = min(cells, key=lambda cell: cell.over_seeds.p)
    assert smallest.adjusted_p == pytest.approx(15 * smallest.over_seeds.p)


def test_missing_seeds_are_left_out_and_a_diverged_one_counts_as_a_model_without_skill(comparison):
    folder = comparison(seeds=4, diverged=(("pub", 0),), left_out=(("pub", 1),))
    found = analyse(ResultFolder(folder).results()).method("pub")
    assert (found.ok, found.diverged, found.missing) == (2, 1, 1)
    assert (found.ne_gain.over_seeds.pairs, found.ne_gain.over_seeds.unpaired) == (3, 1)
    assert found.ne == pytest.approx((by_hand(folder, "pub", "ne").mean(axis=1).sum() + 1) / 3)
    assert found.auc == pytest.approx((by_hand(folder, "pub", "auc").mean(axis=1).sum() + 0.5) / 3)
    equal = by_hand(folder, "equal", "ne").mean(axis=1)
    pub = np.array([1, *by_hand(folder, "pub", "ne").mean(axis=1)])
    assert found.ne_gain.mean == pytest.approx(np.mean(100 * (1 - pub / equal[[0, 2, 3]])))


@pytest.mark.parametrize("overfitted", [False, True])
def test_a_diverged_run_is_no_better_than_the_worst_other_of_its_seed(comparison, overfitted):
    folder = comparison(methods=("equal", "pub", "clippy"), seeds=2, diverged=(("pub", 0),))

    def overfit(run):
        if overfitted and (run["method"], run["seed"]) == ("clippy", 0):
            run["test"]["coupon"] |= {"ne": 3.0, "auc": 0.4, "log_loss": 1.2}

    rewrite(folder, overfit)
    results = ResultFolder(folder).results()
    coupon = next(run for run in with_diverged_counted(results).runs if (run.method, run.seed) == ("pub", 0)).test[
        "coupon"
    ]
    # the made-up log loss is 0.4 NE, which is the entropy of the base rate
    expected = {"ne": 3.0, "auc": 0.4, "log_loss": 1.2} if overfitted else {"ne": 1.0, "auc": 0.5, "log_loss": 0.4}
    assert {name: coupon[name] for name in expected} == pytest.approx(expected)
    assert math.isnan(coupon["calibration"])
    assert [run for run in with_diverged_counted(results).runs if run.seed == 1] == [
        run for run in results.runs if run.seed == 1
    ]


def test_where_every_run_diverged_none_is_made_up(comparison):
    folder = comparison(methods=("equal", "pub"), seeds=1, diverged=(("equal", 0), ("pub", 0)))
    results = ResultFolder(folder).results()
    assert with_diverged_counted(results) is results
    assert analyse(results).method("pub").ne is None


def test_ranking_puts_the_lowest_mean_ne_first_and_what_has_none_last(comparison):
    folder = comparison(methods=("clippy", "equal", "multibalance"), seeds=1, diverged=(("clippy", 0),))
    names = [entry.method.name for entry in analyse(ResultFolder(folder).results()).ranked]
    assert names == ["multibalance", "equal", "clippy"]


def test_a_task_that_cannot_be_scored_is_in_no_mean(comparison):
    folder = comparison(natural=False)

    def without_coupon(run):
        run["test"]["coupon"] = dict.fromkeys(("auc", "ne", "log_loss", "calibration"))

    before = analyse(ResultFolder(folder).results()).method("pub")
    rewrite(folder, without_coupon)
    analysis = analyse(ResultFolder(folder).results())
    assert analysis.unscored == ("coupon",)
    assert analysis.tasks == ("category", "purchase", "multiple", "repeat")
    expected = math.fsum(before.tasks[task].values["ne"] for task in analysis.tasks) / 4
    assert analysis.method("pub").ne == pytest.approx(expected)


def test_without_single_task_training_nothing_is_compared_with_it(comparison):
    found = analyse(ResultFolder(comparison(methods=("equal", "pub"), seeds=2)).results()).method("pub")
    assert found.delta_m is None
    assert found.tasks["coupon"].transfer == {}


def test_without_equal_weights_there_is_no_gain(comparison):
    found = analyse(ResultFolder(comparison(methods=("multibalance", "pub"), seeds=2)).results()).method("pub")
    assert found.ne_gain is None


def test_the_natural_view_is_there_only_where_runs_have_it(comparison):
    assert has_natural_view(ResultFolder(comparison(seeds=1)).results())
    assert not has_natural_view(ResultFolder(comparison(seeds=1, natural=False)).results())
