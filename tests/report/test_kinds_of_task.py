"""Reports on binary tasks, regressions, groups, slices and sampled rows together, and on regressions alone."""

import json
import math
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from equipoise.cli.tables import run_tables, summary_table
from equipoise.comparison.result_folder import ResultFolder
from equipoise.report.analysis import analyse
from equipoise.report.calibration_chart import calibration_chart
from equipoise.report.charts import curve_chart
from equipoise.report.outcome import summary
from equipoise.report.page import result_rows, write_markdown, write_report
from equipoise.report.slices import auc_error, slice_findings, slice_tables, sliced_tasks
from equipoise.report.words import natural_rate
from equipoise.training import Run
from tests.report.test_page import charts_of, page_of, visible

SOME = ("single-task", "equal", "multibalance", "pub")


@pytest.fixture
def rich(comparison):
    return comparison(methods=SOME, rich=True)


def results_of(folder):
    return ResultFolder(folder).results()


def numbers_alone(folder):
    """Leave only the regression in the folder, under its name and another."""
    plan = json.loads((folder / "plan.json").read_text())
    plan["tasks"] = ["spend", "watch"]
    plan["about_tasks"] = {task: {"kind": "regression"} for task in plan["tasks"]}
    plan["groups"] = plan["natural_rate"] = None
    (folder / "plan.json").write_text(json.dumps(plan))
    for name in ("runs.jsonl", "tuning.jsonl"):
        lines = []
        for line in (folder / name).read_text().splitlines():
            run = json.loads(line)
            spend = {"rmse": 4.0 - run["seed"] / 1e4, "mae": 3.0, "r2": 0.3, "ne": 0.7 - run["seed"] / 1e5}
            if run["method"] == "pub":
                spend = {"rmse": 3.6, "mae": 2.5, "r2": 0.4, "ne": 0.6 - run["seed"] / 1e4}
            for view in ("test", "validation"):
                run[view] = dict.fromkeys(plan["tasks"], spend)
            run |= {"test_natural": {}, "slices": {}, "calibration": {}, "calibration_natural": {}}
            run["curve"] = [
                point | {"validation": dict.fromkeys(plan["tasks"], spend | {"rmse": 5.0})} for point in run["curve"]
            ]
            lines.append(json.dumps(run) + "\n")
        (folder / name).write_text("".join(lines))
    return folder


def test_the_mean_error_is_over_binary_tasks_and_says_so(rich):
    analysis = analyse(results_of(rich))
    assert analysis.regressions == ("spend",)
    assert "spend" not in analysis.means_over
    pub = analysis.method("pub")
    assert pub.ne == pytest.approx(math.fsum(pub.tasks[task].values["ne"] for task in analysis.means_over) / 5)
    assert "over 5 binary tasks" in " ".join(summary(analysis))
    shown = visible(page_of(rich))
    assert "Means over tasks are over binary tasks alone" in shown


def test_delta_m_covers_a_regression_with_the_sign_right(rich):
    runs = [json.loads(line) for line in (rich / "runs.jsonl").read_text().splitlines()]
    of = {(run["method"], run["seed"]): run["test"] for run in runs}
    expected = []
    for seed in range(5):
        ours, alone = of["pub", seed], of["single-task", seed]
        changes = []
        for task in ours:
            for metric, sign in (("auc", 1), ("ne", -1)) if task != "spend" else (("rmse", -1), ("mae", -1)):
                changes.append(sign * (ours[task][metric] / alone[task][metric] - 1))
        expected.append(100 * np.mean(changes))
    found = analyse(results_of(rich)).method("pub").delta_m
    assert found.mean == pytest.approx(np.mean(expected))


def test_a_regression_has_tables_of_its_own_and_binary_tasks_keep_theirs(rich):
    markdown = write_markdown(rich).read_text(encoding="utf-8")
    tables = {part.splitlines()[0]: part for part in markdown.split("\n### ")[1:]}
    assert "spend" not in tables["Normalized entropy (NE) by task, lower is better"]
    numbers = tables["Regressions: RMSE and MAE, lower is better; R², higher is better"]
    assert "| Method | spend: RMSE | spend: MAE | spend: R² |" in numbers
    assert re.search(r"\| PUB \| 3\.\d{3} \(.*%\) \| 2\.900 \(0\.0\s%\) \| 0\.3100 \(0\.0000\) \|", numbers)
    assert "Grouped AUC (GAUC) by task, higher is better" in tables
    assert "RMSE gain over training alone, %:" in markdown


def test_tasks_say_what_they_are_nested_in_and_groups_are_counted(rich):
    shown = visible(page_of(rich))
    assert "after purchase, over all rows" in shown
    assert "a number, after purchase, measured where purchase is 1" in shown
    assert "1,612 of one class" in shown
    assert "AUC among the rows of each household" in shown


def test_regressions_alone_are_compared_by_their_normalized_squared_error(comparison):
    folder = numbers_alone(comparison(methods=("equal", "pub"), rich=True))
    analysis = analyse(results_of(folder))
    assert (analysis.error, analysis.means_over) == ("NSE", ("spend", "watch"))
    assert analysis.method("pub").ne_gain.better
    said = " ".join(summary(analysis))
    assert "PUB has the lowest mean normalized squared error (NSE, lower is better) over 2 tasks: 0.5998" in said
    assert "NSE +14" in said
    rows = result_rows(folder)
    assert rows[0]["Mean NSE"] == "0.5998"
    assert rows[0]["Mean R²"] == "0.4000"
    assert "Mean AUC" not in rows[0]
    assert summary_table(folder).columns[1].header == "R²"
    shown = visible(page_of(folder))
    assert "Gain in mean NSE over equal weights" in shown
    assert not any(nothing in shown for nothing in ("None", "nan", "Grouped AUC"))
    assert write_markdown(folder).is_file()


def test_curves_of_regressions_stand_apart_from_those_of_binary_tasks(rich):
    numbers, binary = (curve_chart(results_of(rich), kind) for kind in ("regression", "binary"))
    assert [choice.options for choice in numbers.choices] == [["Mean over tasks", "spend"], ["NSE", "RMSE"]]
    assert "spend" not in binary.choices[0].options
    rmse = numbers.panels[3][0].figure
    assert rmse["layout"]["yaxis"]["title"]["text"] == "Validation RMSE (lower is better)"
    assert rmse["data"][0]["y"][-1] == pytest.approx(4 + 1e4 / (444 * 2048), rel=1e-3)


def test_slices_that_fall_behind_are_named_and_no_others(rich):
    results = results_of(rich)
    said = " ".join(slice_findings(results, analyse(results)))
    at_airport = r"PUB is clearly worse than equal weights where store is Airport: (\w+ \(−\d+\.\d\s%\)(, | and )?){5}"
    assert re.search(at_airport, said)
    assert said.count("clearly worse than equal weights where") == 1
    ranks = said.split("ranks clearly worse than over all rows where ")[1].split(". ")[0]
    assert ranks.startswith("store is Harbour: ")
    assert ranks.count("over all rows") == 5
    assert "Mill Lane" not in said  # 40 positives
    assert "is calibrated clearly worse than over all rows where store is Airport: repeat (1.6" in said


def test_a_difference_that_chance_explains_is_no_finding(rich):
    results = results_of(rich)
    found = sliced_tasks(results, analyse(results))
    calm = [entry for entry in found if entry.value == "Main Street"]
    assert calm
    assert not any(entry.behind for entry in calm)
    small = [entry for entry in found if entry.value == "Mill Lane"]
    assert not any(entry.judged or entry.behind for entry in small if entry.task != "spend")


def test_the_table_of_a_column_has_a_row_for_each_value_and_the_rest_last(rich):
    results = results_of(rich)
    ((title, table),) = slice_tables(results, analyse(results))
    assert title.startswith("store, ")
    values = [row.cells[0].text for row in table.rows]
    assert values == ["Main Street", "Airport", "Harbour", "Mill Lane", "all others"]
    assert [column.title for column in table.columns[2:]] == list(analyse(results).tasks)
    assert table.rows[3].cells[2].below == "few rows"
    assert table.rows[2].cells[2].background


def test_the_error_of_an_auc_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    labels = np.r_[np.ones(100), np.zeros(400)]
    drawn = [roc_auc_score(labels, rng.exponential(1, 500) * np.where(labels == 1, 4, 1)) for _ in range(400)]
    assert auc_error(float(np.mean(drawn)), 100, 400) == pytest.approx(np.std(drawn), rel=0.1)


def test_calibration_curves_are_charted_at_both_rates(rich):
    results = results_of(rich)
    sampled, natural = (calibration_chart(results, analyse(results, view)) for view in ("test", "test_natural"))
    assert sampled.choices[0].options == [*analyse(results).tasks]
    coupon = natural.panels[3][0].figure
    assert coupon["data"][0]["name"] == "calibrated"
    assert len(coupon["data"]) == 1 + len(SOME)
    assert coupon["layout"]["xaxis"]["type"] == "log"
    assert max(coupon["data"][2]["x"]) == pytest.approx(0.9 * 0.0014, rel=1e-3)
    assert "type" not in sampled.panels[5][0].figure["layout"]["xaxis"]
    expected = np.mean([run.calibration["coupon"][7]["rate"] for run in results.of("equal")])
    assert sampled.panels[3][0].figure["data"][2]["y"][7] == pytest.approx(expected, rel=1e-4)


def test_the_natural_rate_says_what_was_corrected(rich):
    plan = results_of(rich).plan
    assert "of the rows without a positive of purchase a share of 0.0014 was kept" in natural_rate(plan)
    biased = plan.model_copy(update={"natural_rate": plan.natural_rate.model_copy(update={"biased": ["like"]})})
    assert natural_rate(biased).endswith("how it occurs with purchase: like.")
    old = plan.model_copy(update={"natural_rate": None})
    assert "does not say how it was drawn: NE and calibration at the natural rate then mean little" in natural_rate(old)


def test_a_page_with_everything_is_whole(rich):
    page = page_of(rich)
    shown = visible(page)
    assert not any(nothing in shown for nothing in ("None", "nan", "inf "))
    # two of gains, two of calibration, two of curves, weights, cosines, tuning
    assert len(charts_of(page)) == 9
    assert write_report(rich).stat().st_size < 6_500_000


def test_a_run_in_the_terminal_shows_the_metrics_that_its_tasks_have():
    run = Run("equal", 0, 1e-3, test={"click": {"auc": 0.7, "ne": 0.9}, "spend": {"rmse": 3.25, "r2": 0.4, "ne": 0.6}})
    binary, regressions = run_tables(run).renderables
    assert [column.header for column in binary.columns] == ["task", "AUC", "NE"]
    assert [column.header for column in regressions.columns] == ["task", "NSE", "RMSE", "R²"]
    assert [next(iter(column.cells)) for column in regressions.columns][1:] == ["0.6000", "3.2500", "0.4000"]
