"""The answer follows the numbers of the suite, and claims no more than their intervals allow."""

import json
import re

import pytest

from equipoise.report.evidence.answer import answer
from equipoise.report.evidence.cautions import suite_cautions
from equipoise.report.evidence.overall import over_all_settings
from equipoise.report.evidence.suite import read_suite
from equipoise.report.evidence.tables import overall_table
from tests.made_up_comparison import TASKS, Comparison

FEW = ("single-task", "equal", "multibalance", "pub", "static")


def told(folder, tell=answer):
    read = read_suite(folder)
    return " ".join(tell(read, over_all_settings(read))).replace("\N{NO-BREAK SPACE}", " ")


def rewrite(folder, change):
    """Rewrite every run of a comparison."""
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        change(run)
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))


def test_a_gain_is_named_with_setting_interval_task_and_positives(suite):
    said = told(suite(one=Comparison(methods=FEW, users=True), two=Comparison(methods=FEW, seeds=4)))
    assert said.startswith("MultiBalance is clearly better than equal weights in 2 of 2 settings: Two (NE +2.")
    assert "clearly worse in none" in said
    assert "With users drawn anew as well as seeds, the interval still excludes zero in One." in said
    assert "Intervals cover seeds alone, because the runs hold no groups of users, in Two." in said
    assert "Of 10 tasks over all settings MultiBalance clearly gains on coupon in 2 settings (NE +10." in said
    assert "609 positive test rows). None clearly loses." in said
    assert "By average rank over 2 settings and 3 methods no row is better than MultiBalance (1.00)." in said
    assert "It trains slower than equal weights in 2 settings (QPS ratio 0.99)." in said


def test_the_method_with_the_smallest_spread_of_trials_is_named(suite):
    folder = suite(one=Comparison(methods=FEW), two=Comparison(methods=FEW))
    found = re.search(
        r"above that of the best one, on average over the tuned settings, by: (.*?\.\d [^;]*);", told(folder)
    )
    assert found
    assert found[1].endswith("%, the least of 3 methods")
    for name in ("one", "two"):
        (folder / name / "tuning.jsonl").unlink()
    assert "on average over the tuned settings" not in told(folder)


def test_a_gain_that_depends_on_the_users_is_called_that(suite):
    folder = suite(one=Comparison(methods=FEW, users=True))

    def only_one_group_gains(run):
        if run["method"] == "multibalance":
            for sums in run["random_groups"].values():
                of_group = [0.33 * rows for rows in sums["weight"]]
                of_group[0] += sum(sums["loss"]) - sum(of_group)
                sums["loss"] = of_group

    rewrite(folder / "one", only_one_group_gains)
    said = told(folder)
    assert "With users drawn anew as well as seeds, the interval includes zero in One (−" in said
    assert "still excludes zero" not in said


def test_no_gain_is_called_no_gain(suite):
    made = Comparison(methods=("equal", "multibalance-own-gram"))
    folder = suite(one=made)

    def level(run):
        for task, metrics in run["test"].items():
            metrics["ne"] = 0.6 + 0.001 * ((run["seed"] * len(run["method"]) + len(task)) % 3)

    rewrite(folder / "one", level)
    said = told(folder)
    assert said.startswith("MultiBalance, own lengths is clearly better than equal weights in none of 1 setting")
    assert "clearly better than equal weights in some setting" not in said


def test_a_loss_is_called_a_loss(suite):
    said = told(suite(one=Comparison(methods=("equal", "adatask"))))
    assert said.startswith("AdaTask does not pay here: of 1 setting it is clearly better than equal weights in none")
    assert "clearly worse in One (NE −" in said
    assert "none clearly gains. It clearly loses on coupon (One: NE −" in said


def test_two_seeds_claim_nothing(suite):
    folder = suite(one=Comparison(methods=FEW, seeds=2))
    assert told(folder) == "Too few seeds to say whether balancing pays: at least 3 are needed in a setting."
    assert "Too few seeds to claim a gain: One (2 seeds)." in told(folder, suite_cautions)


def test_where_every_task_is_too_rare_that_is_said(suite):
    rare = {task: {"labelled": 30_000, "positives": 9} for task in TASKS}
    folder = suite(one=Comparison(methods=FEW, plan={"label_counts": {"validation": rare, "test": rare}}))
    assert told(folder).startswith("No setting has a task with 100 test rows of each class or more, so nothing is said")


def test_static_weights_that_were_given_are_not_called_searched(suite):
    folder = suite(one=Comparison(methods=FEW))
    (row,) = [row for row in overall_table(over_all_settings(read_suite(folder))).rows if "Static" in row.cells[0].text]
    assert row.cells[0].below == "searched, a training per trial"
    for file in (folder / "one").glob("*.json*"):
        file.write_text(file.read_text().replace('"static"', '"static:weights=1-2"'))
    (row,) = [row for row in overall_table(over_all_settings(read_suite(folder))).rows if "Static" in row.cells[0].text]
    assert row.cells[0].below == "given beforehand"


@pytest.mark.parametrize("made", [Comparison(methods=("equal",)), Comparison(methods=("pub", "clippy"))])
def test_without_two_sides_there_is_nothing_to_compare(suite, made):
    assert told(suite(one=made, later=None)).startswith("No setting has results of equal weights and of a balancing")


@pytest.mark.parametrize(
    ("speed", "claim"),
    [
        ((1.421, 0.9, 4.6), "It trains neither clearly faster nor slower in 1 setting."),
        ((1.421, 1.3, 1.5), "It trains faster than equal weights in 1 setting (QPS ratio 1.42)."),
        ((0.98, 0.97, 1.02), "It trains as fast, within 5 %, in 1 setting."),
    ],
)
def test_speed_is_claimed_only_where_its_interval_carries_it(suite, speed, claim):
    said = told(suite(one=Comparison(methods=FEW, speeds={"multibalance": speed})))
    assert claim in said
    assert ("faster than" in said) == ("faster than" in claim)


def test_a_row_that_ranks_before_the_default_is_named_and_compared_directly(suite):
    settings = {
        name: Comparison(methods=("equal", "multibalance", "pub", "clippy")) for name in ("one", "two", "three")
    }
    folder = suite(**settings)

    def pub_wins(run):
        if run["method"] == "pub":
            for metrics in run["test"].values():
                metrics["ne"] *= 0.9

    for name in settings:
        rewrite(folder / name, pub_wins)
    said = told(folder)
    assert "By average rank over 3 settings and 4 methods PUB (1.00) is before MultiBalance (2.00)." in said
    assert (
        "PUB is clearly better than MultiBalance in 3 of 3, clearly worse in 0, and not clearly different in 0." in said
    )
    assert "None of these is before it by more than the critical difference of 2.71." in said
    assert "The methods' ranks are not all alike (Friedman test, p" in said


def test_static_weights_are_compared_with_one_training(suite):
    folder = suite(one=Comparison(methods=FEW), two=Comparison(methods=FEW[:-1]))
    said = told(folder)
    assert "Static weights, searched in 3 trainings, are clearly better than equal weights in 1 of 1 setting." in said
    assert "One training with MultiBalance is clearly better than they are in 1, clearly worse in 0" in said
    assert "No fixed static weights: Two." in told(folder, suite_cautions)


def test_what_limits_a_suite_is_said(suite):
    said = told(
        suite(
            one=Comparison(diverged=(("pub", 0), ("pub", 1))),
            half=Comparison(left_out=(("pub", 1),), tuned=False, speed=False, plan={"generated": True}),
            busy=Comparison(speeds={"equal": (1.0, 0.5, 2.0)}),
            later=None,
        ),
        suite_cautions,
    )
    for expected in (
        "Not begun: Later.",
        "Not finished: Half (39 of 40 runs). Ranks and means over settings leave them out.",
        "Diverged: PUB (2 of 14). A run that diverged counts in its seed as a model without skill (NE 1, AUC 0.5)",
        "No fixed static weights: every setting.",
        "Rates not tuned: Half.",
        "Speed not measured: Half.",
        "Machine too busy to measure speed: Busy.",
        "Generated data, on which nobody acted: Half.",
        "The 2 ranked settings are on 1 data set",
    ):
        assert expected in said
