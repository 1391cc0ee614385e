"""The section on who gains and who loses: it names what is clear over the seeds, and no more."""

import json
import re

import numpy as np
import pytest

from equipoise.comparison.result_folder import ResultFolder
from equipoise.report.analysis import analyse
from equipoise.report.page import write_markdown, write_report
from equipoise.report.user_groups import gap_table, group_findings, group_gaps, group_means, group_tables

GROUPS = {"18-24": 4_000, "25-64": 30_000, "65+": 2_000, "100+": 100}
AUC = {"18-24": 0.80, "25-64": 0.86, "65+": 0.74, "100+": 0.50}


def with_ages(folder, change):
    """Write groups of ages into a comparison; ``change`` gives the change of NE and AUC by method and group."""
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"user_groups": ["age"]}))
    lines = []
    for line in (folder / "runs.jsonl").read_text().splitlines():
        run = json.loads(line)
        noise = np.random.default_rng([run["seed"], len(run["method"])])
        run["slices"] = {"age": [
            {"value": group, "values": 1, "rows": rows, "tasks": {
                task: {
                    "rows": rows, "positives": rows // 10, "auc": AUC[group] + moved + noise.normal(0, 1e-4),
                    "ne": 0.7 * (1 - gain) * float(np.exp(noise.normal(0, 1e-4))), "log_loss": 0.3, "calibration": 1.0,
                }
                for task in plan["tasks"]
                for gain, moved in [change.get((run["method"], group), (0.0, 0.0))]
            }}
            for group, rows in GROUPS.items()
        ]}  # fmt: skip
        lines.append(json.dumps(run) + "\n")
    (folder / "runs.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def ages(comparison):
    folder = comparison(methods=("equal", "multibalance", "pub"))
    return with_ages(folder, {("multibalance", "65+"): (0.03, 0.02), ("multibalance", "18-24"): (-0.01, 0.0)})


def said(folder):
    results = ResultFolder(folder).results()
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in group_findings(results, analyse(results))]


def test_groups_that_clearly_gain_and_lose_are_named_and_no_others(ages):
    means, gains, gap, pub_means, pub, pub_gap, smallest = said(ages)
    assert re.fullmatch(
        r"MultiBalance against equal weights, mean NE of 3 groups: clear gain in 1 \(age 65\+ \+3.0 %\); "
        r"clear loss in 1 \(age 18-24 −1.0 %\); the others are not clear.", means
    )  # fmt: skip
    assert "no clear gain; no clear loss" in pub_means
    assert gains.startswith("MultiBalance, the 15 cells of group and task: 5 clear gains (age 65+: ")
    assert "+3.0 %" in gains
    assert "; 5 clear losses (age 18-24: " in gains
    assert "25-64" not in gains
    assert gap.startswith(
        "MultiBalance clearly narrows the gap between the groups served best and worst on category by"
    )
    assert re.search(r"\(AUC 0\.1[12]\d\d to 0\.(10|09)\d\d\)", gap)
    assert "no clear gain; no clear loss." in pub
    assert pub_gap == "PUB: the gap between the groups served best and worst changes clearly on no task."
    assert smallest.startswith("The smallest group is age 100+ with 100 test rows.")


def test_a_gap_is_between_groups_with_enough_rows_and_paired_by_seed(ages):
    results = ResultFolder(ages).results()
    gaps = [gap for gap in group_gaps(results, analyse(results)) if gap.method == "multibalance"]
    assert {(gap.best, gap.worst) for gap in gaps} == {("25-64", "65+")}  # 100+ has 10 positives
    for gap in gaps:
        assert gap.before == pytest.approx(0.12, abs=1e-3)
        assert gap.change.mean == pytest.approx(-0.02, abs=1e-3)
        assert gap.change.over_seeds.pairs == 5
    table = gap_table(results, analyse(results))
    assert len(table.rows) == 2 * len(gaps)
    assert table.rows[0].cells[-1].text.endswith(" narrower")


def test_the_mean_of_a_group_is_over_its_tasks_and_paired_by_seed(ages):
    results = ResultFolder(ages).results()
    runs = {(run.method, run.seed): run for run in results.runs}
    for entry in group_means(results, analyse(results)):
        changes = []
        for seed in results.plan.seeds:
            mine, theirs = (
                np.mean([metrics["ne"] for part in runs[method, seed].slices["age"] if part["value"] == entry.value
                         for metrics in part["tasks"].values()])
                for method in (entry.method, "equal")
            )  # fmt: skip
            changes.append(100 * (1 - mine / theirs))
        assert entry.gain.mean == pytest.approx(np.mean(changes))
        assert entry.tasks == 5


def test_seeds_that_one_side_lacks_have_no_part_in_a_gap(ages):
    lines = (ages / "runs.jsonl").read_text().splitlines()
    kept = [line for line in lines if not (json.loads(line)["method"] == "equal" and json.loads(line)["seed"] > 2)]
    (ages / "runs.jsonl").write_text("\n".join(kept) + "\n")
    results = ResultFolder(ages).results()
    for gap in group_gaps(results, analyse(results)):
        assert gap.change.over_seeds.pairs == 3
        assert gap.change.mean == pytest.approx(gap.after - gap.before)


def test_a_wider_gap_is_said(comparison):
    folder = with_ages(comparison(methods=("equal", "pub")), {("pub", "65+"): (-0.02, -0.03)})
    assert "PUB clearly widens the gap between the groups served best and worst on category by age" in said(folder)[2]


def test_cells_with_few_rows_say_nothing(ages):
    results = ResultFolder(ages).results()
    (title, table), _ = group_tables(results, analyse(results))
    assert title == "age, MultiBalance against equal weights"
    by_group = {row.cells[0].text: row for row in table.rows}
    assert by_group["100+"].cells[2].below == by_group["100+"].cells[3].below == "few rows"
    assert by_group["65+"].cells[2].text.startswith("▲ +3.0")
    assert by_group["65+"].cells[3].text.startswith("▲ +3.0")
    assert by_group["65+"].cells[3].below.startswith("AUC +0.0")


def test_one_seed_says_nothing_of_any_group(comparison):
    folder = with_ages(comparison(methods=("equal", "pub"), seeds=1), {("pub", "65+"): (0.05, 0.01)})
    assert said(folder)[0] == "PUB: nothing can be said of any group; that takes 3 paired seeds."


def test_both_forms_of_the_report_have_the_section(ages):
    assert "## Who gains, who loses" in write_markdown(ages).read_text()
    assert 'id="users"' in write_report(ages).read_text()


def test_a_report_without_groups_of_users_has_no_such_section(comparison):
    assert "Who gains, who loses" not in write_markdown(comparison(methods=("equal", "pub"), rich=True)).read_text()
