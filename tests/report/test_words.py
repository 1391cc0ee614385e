"""The report's sentences follow its numbers, also when results are bad or missing."""

import json

import pytest

from equipoise.comparison.result_folder import ResultFolder
from equipoise.report import result_rows
from equipoise.report.analysis import analyse
from equipoise.report.outcome import against_static_weights, summary
from equipoise.report.words import cautions, transfer_summary


def plain(sentences):
    return " ".join(sentences).replace("\N{NO-BREAK SPACE}", " ")


def told(folder, tell=None):
    results = ResultFolder(folder).results()
    analysis = analyse(results)
    return plain(tell(results, analysis) if tell else summary(analysis))


def transfer(folder):
    return plain(transfer_summary(analyse(ResultFolder(folder).results())))


def better_alone(folder, ne):
    """Make single-task training that much better on coupon."""
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        if run["method"] == "single-task":
            run["test"]["coupon"]["ne"] -= ne
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))


def test_the_winner_is_named_with_gain_interval_and_cost(comparison):
    said = told(comparison())
    assert said.startswith("MultiBalance has the lowest mean normalized entropy")
    assert "95 % interval" in said
    assert "5 paired seeds, p < 0.001" in said
    assert "Task by task it is clearly better on coupon (NE +10." in said
    assert "1.3 % slower than equal weights" in said


def test_every_other_joint_method_is_put_in_its_place(comparison):
    said = told(comparison())
    assert "Clearly worse than equal weights: AdaTask" in said
    unclear = said.split("Not clearly different from equal weights: ")[1]
    assert unclear.startswith("PUB (")
    assert "Clippy" in unclear
    assert "Single-task" not in said


def test_it_says_so_when_nothing_beats_equal_weights(comparison):
    said = told(comparison(methods=("equal", "adatask", "single-task")))
    assert said.startswith("No joint method beat equal weights")
    assert "Clearly worse than equal weights: AdaTask" in said


def test_a_gain_that_may_be_chance_is_called_that(comparison):
    folder = comparison(methods=("equal", "clippy"), seeds=3)
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        for task in run["test"].values():
            task["ne"] = 0.6 - (0.01 * (run["seed"] - 0.9) if run["method"] == "clippy" else 0)
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    said = told(folder)
    assert said.startswith("No method is clearly better than equal weights. Clippy has the lowest")
    assert "within what chance alone would give" in said


def test_one_seed_claims_no_test(comparison):
    folder = comparison(seeds=1)
    said = told(folder)
    assert said.startswith("Too few seeds to say which method is better: 1 paired seed, and at least 3 are needed.")
    assert "p <" not in said
    assert "1 seed only" in told(folder, cautions)


def test_an_empty_comparison_says_that_there_is_nothing_yet(comparison):
    folder = comparison(seeds=2)
    (folder / "runs.jsonl").write_text("")
    assert "nothing to compare" in told(folder)
    assert "0 of 16 runs" in told(folder, cautions)
    assert "cannot be told" in transfer(folder)


def test_without_equal_weights_no_gain_is_stated(comparison):
    assert "no gain can be stated" in told(comparison(methods=("multibalance", "pub"), seeds=2))


def test_negative_transfer_names_task_size_and_what_helps(comparison):
    folder = comparison()
    better_alone(folder, 0.10)
    said = transfer(folder)
    assert "Under equal weights coupon (−8." in said
    assert "beyond the 95 % interval over seeds and after Holm's adjustment: negative transfer" in said
    assert "coupon: no longer worse than alone beyond the interval with MultiBalance (+" in said
    worse = said.split("worse than alone, but less so, with ")[1]
    assert "PUB + AdaTask (−" in worse
    assert "Clippy" not in worse


def test_negative_transfer_that_no_method_helps_is_said(comparison):
    folder = comparison(methods=("single-task", "equal", "adatask"))
    better_alone(folder, 0.10)
    assert transfer(folder).endswith("coupon: no other method helps.")


def test_training_alone_is_named_where_it_wins(comparison):
    folder = comparison(methods=("single-task", "equal", "adatask"))
    assert "One model per task" not in told(folder)
    better_alone(folder, 0.40)
    assert "One model per task does better still" in told(folder)
    better_alone(folder, -0.40)
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        if run["method"] == "single-task":
            run["test"]["coupon"]["ne"] -= 0.8 * (run["seed"] == 1)
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert "One model per task has a lower mean NE, " in told(folder)
    assert "but not clearly, and takes 5 models." in told(folder)


def test_no_negative_transfer_is_said_too(comparison):
    assert transfer(comparison()).startswith("Under equal weights no task is worse in NE")


def test_few_seeds_cannot_show_negative_transfer(comparison):
    assert "No task can be tested" in transfer(comparison(seeds=1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"left_out": (("pub", 1),)}, "39 of 40 runs"),
        ({"diverged": (("pub", 1), ("pub", 2))}, "Diverged: PUB (2 seeds)"),
        ({"seeds": 2}, "2 seeds only: differences may be chance, and no gain is claimed"),
        ({"speed": False}, "Speed and memory have not been measured"),
        ({}, "edge of the grid: MultiBalance, PUB and Clippy"),
        ({"tuned": False, "methods": ("equal", "single-task")}, "same learning rate"),
    ],
)
def test_what_limits_the_result_is_said(comparison, changes, expected):
    assert expected in told(comparison(**changes), cautions)


def test_a_setting_that_makes_runs_irreproducible_is_said(comparison):
    folder = comparison()
    lines = (folder / "runs.jsonl").read_text().splitlines()
    runs = [json.loads(line) | {"irreproducible": "a kernel adds in no fixed order"} for line in lines]
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    expected = "A second run may differ in the last digits: a kernel adds in no fixed order."
    assert told(folder, cautions).count(expected) == 1


@pytest.mark.parametrize(("skipped", "how"), [(0, "the task left out of those steps"), (2, "6 steps left out whole")])
def test_losses_that_were_not_finite_are_counted_by_method_and_task(comparison, skipped, how):
    folder = comparison(seeds=3, plan={"options": {"non_finite": "skip-task"}})
    lines = (folder / "runs.jsonl").read_text().splitlines()
    bad = {"non_finite": {"coupon": 4}, "skipped_steps": skipped}
    runs = [json.loads(line) for line in lines]
    runs = [run | bad if run["method"] == "pub" else run for run in runs]
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    said = told(folder, cautions)
    assert f"PUB met losses or gradients that were not finite, coupon in 12 steps of 3 seeds: {how}." in said
    assert said.count("not finite") == 1


def test_a_sound_comparison_has_nothing_to_beware_of(comparison):
    folder = comparison(methods=("equal", "single-task", "multibalance-own-gram"))
    plan = json.loads((folder / "plan.json").read_text())
    without = told(folder, cautions)
    assert without.startswith("No fixed static weights in this table")
    (folder / "plan.json").write_text(json.dumps(plan).replace("multibalance-own-gram", "static"))
    lines = (folder / "runs.jsonl").read_text()
    (folder / "runs.jsonl").write_text(lines.replace("multibalance-own-gram", "static"))
    assert "static" not in told(folder, cautions)


def test_static_weights_are_named_with_their_trials_and_compared_with_the_best_method(comparison):
    said = told(comparison(methods=("equal", "multibalance", "static")), against_static_weights)
    assert said.startswith("Static weights, found in 3 trials, gain +1.")
    assert "; MultiBalance is better than they are: +0.9" in said
    assert "5 paired seeds" in said


def test_without_static_weights_nothing_is_said_about_them(comparison):
    assert told(comparison(), against_static_weights) == ""


def counts(**positives):
    """Return label counts of validation and test: 5,000 of 10,000 rows positive, except the given ones."""
    tasks = dict.fromkeys(("category", "purchase", "multiple", "coupon", "repeat"), 5000) | positives
    of_split = {task: {"labelled": 10_000, "positives": found} for task, found in tasks.items()}
    return {"label_counts": {"validation": of_split, "test": of_split}}


@pytest.mark.parametrize(
    ("speeds", "claim"),
    [
        ({"multibalance": (1.421, 0.9, 4.6)}, "cannot be told here (95 % interval of the ratio, 0.90 to 4.60)"),
        ({"multibalance": (1.421, 1.2, 1.6)}, "MultiBalance trains 42.1 % faster than equal weights (ratio 1.200 to"),
        ({"multibalance": (0.98, 0.97, 1.02)}, "MultiBalance trains as fast as equal weights, within 5 %."),
        # as far from 1 as two identical learners were from each other
        ({"multibalance": (0.93, 0.92, 0.97), "equal": (1, 0.92, 1.05)}, "cannot be told here"),
        ({"equal": (1.2, 0.7, 1.9)}, "could not be measured: the machine was too busy"),
        ({"equal": (1.0, 0.99, 1.2), "multibalance": (1.421, 1.2, 1.6)}, "the machine was too busy"),
        ({"equal": (1.0, 0.8, 1.2), "multibalance": (0.27, 0.25, 0.29)}, "MultiBalance trains 73.0 % slower than"),
    ],
)
def test_speed_is_claimed_only_where_its_interval_carries_it(comparison, speeds, claim):
    folder = comparison(speeds=speeds)
    assert claim in told(folder)
    assert ("% faster" in told(folder)) == ("% faster" in claim)
    busy = "two identical learners seemed to differ by 10 % or more" in told(folder, cautions)
    assert busy == ("busy" in claim or "slower" in claim)


def test_speed_without_a_control_is_not_claimed(comparison):
    folder = comparison()
    speeds = json.loads((folder / "throughput.json").read_text())
    del speeds["equal"]
    (folder / "throughput.json").write_text(json.dumps(speeds))
    assert "cannot be told here" in told(folder)


def test_two_seeds_claim_nothing_even_where_their_interval_excludes_zero(comparison):
    folder = comparison(methods=("equal", "multibalance", "single-task"), seeds=2)
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        for task in run["test"].values():
            task["ne"] = 0.6 + 0.0001 * run["seed"] - 0.1 * (run["method"] != "equal") * (1 + 0.001 * run["seed"])
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert analyse(ResultFolder(folder).results()).method("multibalance").ne_gain.over_seeds.verdict == "above"
    said = told(folder)
    assert said.startswith("Too few seeds to say which method is better: 2 paired seeds")
    assert "a gain of" not in said
    assert "clearly" not in said
    assert "No task can be tested" in transfer(folder)


def test_a_task_with_few_positives_ranks_nothing_and_is_named(comparison):
    folder = comparison(plan=counts(coupon=20))
    said, warned = told(folder), told(folder, cautions)
    assert "over 4 of 5 tasks" in said
    assert "coupon" not in said
    assert "Tasks with few labels of one class among the test rows: coupon (20 positives of 10,000)." in warned
    assert "among the validation rows: coupon (20 positives of 10,000)." in warned
    plan = analyse(ResultFolder(folder).results())
    without = [plan.method("pub").tasks[task].values["ne"] for task in plan.means_over]
    assert plan.method("pub").ne == pytest.approx(sum(without) / 4)


def test_few_negatives_are_as_bad_as_few_positives(comparison):
    assert "coupon (1 negative of 10,000)" in told(comparison(plan=counts(coupon=9999)), cautions)


def test_where_every_task_has_few_positives_no_method_is_ranked(comparison):
    few = dict.fromkeys(("category", "purchase", "multiple", "coupon", "repeat"), 20)
    folder = comparison(plan=counts(**few))
    assert told(folder).startswith("No method is ranked: every task has fewer than 100 test rows of its rarer class")
    assert "No method is ranked on this data." in told(folder, cautions)
    gains = [row["NE gain over equal weights"] for row in result_rows(folder)]
    assert not any(sign in gain for gain in gains for sign in "▲▼△▽")


def test_a_clear_gain_is_named_before_a_lower_mean_that_is_not_clear(comparison):
    folder = comparison(methods=("equal", "pub", "clippy"), seeds=5)
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        off = {"equal": 0.0, "pub": -0.01 - 1e-5 * run["seed"], "clippy": -0.02 + 0.03 * (run["seed"] % 2)}
        for task in run["test"].values():
            task["ne"] = 0.6 + off[run["method"]] - (0.01 if run["method"] == "clippy" else 0)
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    said = told(folder)
    assert said.startswith("PUB is clearly better than equal weights")
    assert "Clippy has a lower one" in said


def test_what_tuning_had_to_leave_out_is_said(comparison):
    folder = comparison(methods=("equal", "pub"))
    runs = [json.loads(line) for line in (folder / "tuning.jsonl").read_text().splitlines()]
    for run in runs:
        run["validation"]["coupon"] = {"auc": None, "ne": None}
        if run["method"] == "pub":
            run["status"] = "diverged"
    (folder / "tuning.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    warned = told(folder, cautions)
    assert "Rates were chosen without coupon: the validation rows hold one class only" in warned
    assert "Diverged at every rate of the grid: PUB." in warned


def test_rates_of_another_recipe_are_said(comparison):
    doubts = {"equal": "tuned with epochs 2 (here 1)", "pub": "tuned with epochs 2 (here 1)"}
    folder = comparison(methods=("equal", "pub"), tuned=False, plan={"rate_doubts": doubts})
    assert "Learning rates that may not suit: Equal weights and PUB (tuned with epochs 2 (here 1))." in told(
        folder, cautions
    )
