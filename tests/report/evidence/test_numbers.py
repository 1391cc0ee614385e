"""Numbers over settings agree with those of each comparison, and say what is left out."""

import itertools
import json

import numpy as np
import pytest

from equipoise.report.analysis import analyse
from equipoise.report.evidence.duel import outcome_of, static_duels
from equipoise.report.evidence.overall import over_all_settings
from equipoise.report.evidence.sensitivity import (
    Sensitivity,
    average_spreads,
    expected_best,
    gains_by_baseline_trials,
    sensitivities,
)
from equipoise.report.evidence.suite import read_suite
from equipoise.report.statistics import relative_gain
from tests.made_up_comparison import METHODS, Comparison

FEW = ("single-task", "equal", "multibalance", "pub", "static")


def overall(folder):
    return over_all_settings(read_suite(folder))


def mean_ne(setting, name):
    runs = [run for run in setting.results.runs if run.method == name]
    return {run.seed: np.mean([run.test[task]["ne"] for task in setting.results.plan.tasks]) for run in runs}


def test_the_gain_over_users_starts_from_the_gain_of_the_report(suite):
    (setting,) = read_suite(suite(one=Comparison(methods=FEW, users=True))).settings
    assert set(setting.gains_over_users) == set(FEW) - {"equal"}
    for name, found in setting.gains_over_users.items():
        assert found.mean == pytest.approx(setting.analysis.method(name).ne_gain.mean)
        assert found.low < found.mean < found.high
        of_coupon = setting.analysis.method(name).tasks["coupon"].gains["ne"].mean
        assert setting.task_gains_over_users["coupon"][name].mean == pytest.approx(of_coupon)


def test_a_diverged_run_counts_over_users_too(suite):
    made = Comparison(methods=FEW, users=True, diverged=(("pub", 0),))
    (setting,) = read_suite(suite(one=made)).settings
    found = setting.gains_over_users["pub"]
    assert found.mean == pytest.approx(setting.analysis.method("pub").ne_gain.mean)
    assert found.mean < -5


def test_runs_without_groups_of_users_have_no_interval_over_them(suite):
    (setting,) = read_suite(suite(one=Comparison(methods=FEW))).settings
    assert setting.gains_over_users == {}


def test_ranks_are_over_finished_settings_and_leave_references_out(suite):
    folder = suite(
        one=Comparison(methods=FEW), two=Comparison(methods=FEW, seeds=3), unfinished=Comparison(left_out=(("pub", 1),))
    )
    found = overall(folder)
    assert [setting.name for setting in found.ranked] == ["one", "two"]
    assert found.ranks.average == {"multibalance": 1.0, "pub": 2.0, "equal": 3.0}
    ranked = [method.name for method in found.methods if method.rank is not None]
    assert ranked == ["multibalance", "pub", "equal"]
    assert [method.name for method in found.methods][-2:] == ["single-task", "static"]
    assert len(found.method("pub").gains) == 3


def test_a_setting_with_few_of_the_methods_does_not_shrink_the_ranking(suite):
    found = overall(suite(one=Comparison(seeds=2), two=Comparison(seeds=2), small=Comparison(methods=FEW, seeds=2)))
    assert [setting.name for setting in found.ranked] == ["one", "two"]
    assert len(found.ranks.average) == 7


def test_one_missing_method_does_not_cost_a_setting(suite):
    fewer = tuple(name for name in METHODS if name != "clippy")
    found = overall(suite(one=Comparison(seeds=2), two=Comparison(seeds=2), three=Comparison(methods=fewer, seeds=2)))
    assert [setting.name for setting in found.ranked] == ["one", "two", "three"]
    assert len(found.ranks.average) == 6
    assert found.method("clippy").rank is None


def test_wins_losses_and_tasks_are_those_of_each_comparison(suite):
    folder = suite(one=Comparison(), two=Comparison(seeds=3))
    read = read_suite(folder)
    found = over_all_settings(read)
    for method in found.methods:
        entries = [setting.analysis.method(method.name) for setting in read.settings]
        gains = [entry.ne_gain for entry in entries if entry.ne_gain]
        better, worse = sum(gain.better for gain in gains), sum(gain.worse for gain in gains)
        assert method.counts() == (better, len(gains) - better - worse, worse)
        assert sum(method.counts(firm=True)) == len(gains)
        assert method.counts(firm=True)[0] <= better
        if gains:
            assert method.mean_gain == pytest.approx(np.mean([gain.mean for gain in gains]))
    focus = found.focus
    assert focus.name == "multibalance"
    assert {(change.task, change.positives) for change in focus.tasks_better} == {("coupon", 609)}
    assert focus.tasks == 10


def test_speed_is_averaged_only_where_its_interval_is_narrow(suite):
    wide = Comparison(methods=FEW, speeds={"multibalance": (1.421, 0.9, 4.6)})
    busy = Comparison(methods=FEW, speeds={"equal": (1.0, 0.5, 2.0), "pub": (3.0, 2.9, 3.1)})
    found = overall(suite(quiet=Comparison(methods=FEW), wide=wide, busy=busy))
    assert found.method("multibalance").speed == pytest.approx(0.987)
    assert found.method("pub").speed == pytest.approx(0.71)
    assert set(found.front) == {"multibalance", "equal"}


def test_one_training_is_compared_with_static_weights_seed_by_seed(suite):
    read = read_suite(suite(one=Comparison(methods=FEW), without=Comparison(methods=("equal", "multibalance"))))
    (duel,) = static_duels(read, "multibalance")
    expected = relative_gain(
        mean_ne(duel.setting, "multibalance"), mean_ne(duel.setting, "static"), higher_is_better=False
    )
    assert duel.gain.over_seeds == expected
    assert duel.trials == 3
    assert duel.gain.adjusted_p == duel.gain.over_seeds.p
    assert outcome_of([duel]) == (1, 0, 0)


@pytest.mark.parametrize("trials", [1, 2, 3, 5])
def test_the_expected_best_trial_is_the_mean_over_all_choices(trials):
    errors = [0.61, 0.6, 0.75, 0.64, 1.0]
    expected = np.mean([min(chosen) for chosen in itertools.combinations(errors, trials)])
    assert expected_best(errors, trials) == pytest.approx(expected)


def test_trials_that_diverged_count_as_a_model_without_skill(suite):
    (setting,) = read_suite(suite(one=Comparison())).settings
    found = {method.name: method for method in sensitivities(setting)}
    assert (found["adatask"].diverged, found["adatask"].worst) == (1, 1.0)
    for name, method in found.items():
        runs = [run for run in setting.results.tuning if run.method == name and run.status == "ok"]
        errors = sorted(np.mean([metrics["ne"] for metrics in run.validation.values()]) for run in runs)
        assert method.errors[: len(errors)] == pytest.approx(errors)
        beaten = sum(error < found["equal"].best for error in errors) / 3
        assert method.better_than_baseline == pytest.approx(beaten)


def test_the_gain_falls_as_the_baseline_is_tuned():
    method = Sensitivity("a", "A", [0.6, 0.7], 0, None)
    baseline = Sensitivity("b", "B", [0.62, 0.64, 0.7], 0, None)
    gains = gains_by_baseline_trials(method, baseline)
    assert gains == sorted(gains, reverse=True)
    assert gains[0] == pytest.approx(100 * (1 - 0.6 / ((0.62 + 0.64 + 0.7) / 3)))
    assert gains[-1] == pytest.approx(100 * (1 - 0.6 / 0.62))
    assert (method.median, baseline.median) == pytest.approx((0.65, 0.64))
    assert baseline.spread == pytest.approx(100 * (0.64 / 0.62 - 1))


def test_spreads_are_averaged_over_the_settings_of_methods_that_were_tuned_in_all(suite):
    settings = read_suite(suite(one=Comparison(), two=Comparison(methods=FEW[:4]))).settings
    one, two = ({found.name: found.spread for found in sensitivities(setting)} for setting in settings)
    assert one.keys() > two.keys()
    assert average_spreads(settings) == pytest.approx({name: (one[name] + two[name]) / 2 for name in two})
    assert average_spreads([]) == {}


def test_a_setting_reads_as_its_own_report_does(suite):
    folder = suite(one=Comparison(methods=FEW))
    (setting,) = read_suite(folder).settings
    assert json.loads((folder / "one" / "plan.json").read_text())["tasks"] == list(setting.analysis.tasks)
    assert setting.analysis == analyse(setting.results)
