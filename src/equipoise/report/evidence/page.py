"""The evidence page over a suite: one HTML file that opens offline, and the same words and tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.report.analysis import FEW_POSITIVES, MIN_PAIRS
from equipoise.report.cells import PERCENT, Table, number, percent
from equipoise.report.diverged import DIVERGED_COUNTS
from equipoise.report.evidence import charts, tables
from equipoise.report.evidence.answer import answer, tasks_of_setting
from equipoise.report.evidence.cautions import suite_cautions
from equipoise.report.evidence.overall import Overall, over_all_settings
from equipoise.report.evidence.suite import Setting, Suite, read_suite
from equipoise.report.markdown import markdown_table, no_tags
from equipoise.report.phrases import counted, listed
from equipoise.report.statistics import DRAWS
from equipoise.report.web_page import write_page
from equipoise.whole_files import write_whole

__all__ = ["evidence_section", "write_evidence", "write_evidence_markdown"]

_MARKS = (
    "▲ clearly better, ▼ clearly worse than equal weights (p < 0.05 after Holm's adjustment for the number of methods, "
    "or of methods and tasks); △ ▽ only before that adjustment. Intervals are 95 % over seeds."
)
_OVERALL = (
    "Ranks are by mean NE, 1 is the best. Settings are counted by the 95 % interval over seeds, then again "
    "after Holm's adjustment for the number of methods. Tasks are counted after Holm's adjustment, out of "
    "all that were tested."
)


def write_evidence(folder: Path) -> Path:
    """Write ``evidence.html`` into the folder of a suite, finished or not, and return its path.

    The file holds everything it needs (plotly.js too, about 5 MB) and asks nothing of a network.

    Raises:
        FolderError: the folder holds no ``suite.json``, or a file in it is damaged.
    """
    return write_page(folder / "evidence.html", "evidence.html.j2", _content(read_suite(folder), charted=True))


def write_evidence_markdown(folder: Path) -> Path:
    """Write ``evidence.md``, the page's words and tables without its charts, and return its path.

    Raises:
        FolderError: the folder holds no ``suite.json``, or a file in it is damaged.
    """
    content = _content(read_suite(folder))
    lines = [f"# {no_tags(content['title'])}", "", no_tags(content["subtitle"]), ""]
    lines += [*_section(content), "", "## Setting by setting"]
    for setting in content["settings"]:
        lines += ["", f"### {no_tags(setting['title'])}", "", no_tags(setting["facts"]), ""]
        if setting["note"]:
            lines += [no_tags(setting["note"]), ""]
        lines += markdown_table(setting["main"])
        lines += ["", "NE gain over equal weights by task:", "", *markdown_table(setting["by_task"])]
        for heading, table in setting["tables"]:
            lines += ["", f"{heading}:", "", *markdown_table(table)]
    lines += ["", "## How it was done", ""]
    lines += [f"- {name}: {no_tags(value)}" for name, value in content["procedure"]]
    return write_whole(folder / "evidence.md", "\n".join([*lines, ""]))


def evidence_section(folder: Path) -> str:
    """Return the answer and the tables over all settings as Markdown, for a section of a page of the documentation.

    The tables have the methods with results in at least half of the settings; ``evidence.md`` has all.

    Raises:
        FolderError: the folder holds no ``suite.json``, or a file in it is damaged.
    """
    suite = read_suite(folder)
    overall = over_all_settings(suite)
    shown = [
        method for method in overall.methods if method.is_reference or 2 * len(method.gains) >= len(suite.settings)
    ]
    content = _content(suite) | _method_tables(suite, replace(overall, methods=shown))
    lines = _section(content)
    if others := len(overall.methods) - len(shown):
        lines += ["", f"Left out here: {counted(others, 'method')} with results in fewer than half of the settings."]
        lines += [
            "",
            "## Where nearly all methods ran",
            "",
            *markdown_table(tables.fullest_settings_table(suite, overall)),
        ]
    return "\n".join([f"#{line}" if line.startswith("##") else line for line in lines] + [""])


def _section(content: Mapping[str, Any]) -> list[str]:
    """Return the lines about the suite as a whole."""
    first, *others = content["answer"]
    lines = [f"**{no_tags(first)}**", ""]
    lines += [f"- {no_tags(sentence)}" for sentence in others]
    if content["cautions"]:
        lines += ["", "To be kept in mind:", "", *(f"- {no_tags(caution)}" for caution in content["cautions"])]
    if content["overall"].rows:
        lines += ["", "## Over all settings", "", *markdown_table(content["overall"]), "", _OVERALL]
    if content["gains"].rows:
        lines += ["", "## NE gain over equal weights", "", *markdown_table(content["gains"]), "", _MARKS]
    if content["static"]:
        lines += ["", "## Static weights", "", *markdown_table(content["static"])]
    told: dict[str, list[str]] = {}
    for setting in content["settings"]:
        told.setdefault(setting["tasks"], []).append(setting["title"])
    if any(told):
        alone_first = sorted(told.items(), key=lambda entry: len(entry[1]) > 1)
        settings = [f"- {no_tags(listed(titles))}: {no_tags(tasks)}" for tasks, titles in alone_first if tasks]
        lines += ["", "## Which tasks gain", "", *settings]
    if content["sensitivity"]:
        lines += ["", "## How much tuning a method needs", "", content["about_trials"], ""]
        lines += markdown_table(content["sensitivity"])
    if content["baseline"]:
        lines += ["", no_tags(content["about_baseline"]), "", *markdown_table(content["baseline"])]
    return lines


def _content(suite: Suite, *, charted: bool = False) -> dict[str, Any]:
    """Return everything that the template shows; figures only if ``charted``."""
    overall = over_all_settings(suite)
    finished, planned = (
        sum(count)
        for count in (
            [len(setting.results.runs) for setting in suite.settings],
            [setting.results.planned for setting in suite.settings],
        )
    )
    content: dict[str, Any] = {
        "title": suite.title,
        "subtitle": (
            f"{counted(len(overall.methods), 'method')} compared in {counted(len(suite.settings), 'setting')}; "
            f"{finished} of {counted(planned, 'run')} finished."
        ),
        "answer": answer(suite, overall),
        "tiles": _tiles(suite, overall),
        "cautions": suite_cautions(suite, overall),
        **_method_tables(suite, overall),
        "static": tables.static_table(suite, overall.focus),
        "settings": [_of_setting(setting, overall) for setting in suite.settings],
        "about_trials": (
            "The first number says how far the median trial of a method lies above its best one, in validation NE: a "
            "small spread needs little tuning. The second is the share of its trials that are better than the best "
            "trial of equal weights."
        ),
        "baseline": tables.tuning_gain_table(suite, overall.focus),
        "about_baseline": (
            f"Gain of the best trial of {overall.focus.label if overall.focus else 'no method'} over the best of so "
            "many trials of equal weights, drawn at random, on validation rows: the less the baseline is tuned, the "
            "larger every gain looks."
        ),
        "marks": _MARKS,
        "procedure": _procedure(suite),
    }
    if charted:
        content |= {
            "gains_chart": charts.gains_chart(suite),
            "ranks": charts.rank_chart(overall),
            "cost": charts.cost_chart(overall),
            "trials": charts.trials_chart(suite),
            "tuning_gains": charts.tuning_gain_chart(suite),
        }
    return content


def _method_tables(suite: Suite, overall: Overall) -> dict[str, Table | None]:
    """Return the tables with a row per method of ``overall``."""
    return {
        "overall": tables.overall_table(overall),
        "gains": tables.gains_by_setting(suite, overall),
        "sensitivity": tables.sensitivity_table(suite, overall),
    }


def _of_setting(setting: Setting, overall: Overall) -> dict[str, Any]:
    plan = setting.results.plan
    return {
        "title": setting.title,
        "note": setting.note,
        "facts": (
            f"{plan.dataset}, {plan.model}, {counted(len(plan.tasks), 'task')}, {counted(plan.epochs, 'epoch')}, "
            f"{counted(len(plan.seeds), 'seed')}; {len(setting.results.runs)} of "
            f"{counted(setting.results.planned, 'run')} finished."
        ),
        "tasks": tasks_of_setting(setting, overall.focus),
        "by_task": tables.task_gain_table(setting),
        "main": tables.setting_table(setting),
        "tables": tables.setting_tables(setting),
    }


def _tiles(suite: Suite, overall: Overall) -> list[tuple[str, str, str]]:
    """Return the numbers to see first: heading, value, meaning."""
    finished = sum(setting.finished for setting in suite.settings)
    settings = len(suite.settings) + len(suite.not_begun)
    tiles = [("Settings finished", f"{finished} of {settings}", "a comparison each")]
    focus = overall.focus
    if focus is None:
        return tiles
    better, _, worse = focus.counts(firm=True)
    tiles.append((f"{focus.label} clearly better", f"{better} of {len(focus.gains)}", f"clearly worse in {worse}"))
    if focus.rank is not None and overall.ranks is not None:
        place = 1 + sum(rank < focus.rank for rank in overall.ranks.average.values())
        of = f"place {place} of {len(overall.ranks.average)}"
        tiles.append(("Its average rank", number(focus.rank, 2), of))
    if focus.mean_gain is not None:
        over = counted(len(overall.ranked), "setting")
        tiles.append(("Its mean NE gain", percent(focus.mean_gain, 2), f"over {over}; no test"))
    return tiles


def _procedure(suite: Suite) -> Sequence[tuple[str, str]]:
    return [
        (
            "Gain",
            "100 × (NE of equal weights − NE of the method) / NE of equal weights, seed by seed; NE is the mean over "
            f"the tasks with at least {FEW_POSITIVES} test rows of each class. Above 0 is better",
        ),
        (
            "Intervals and tests",
            f"differences are paired by seed; 95{PERCENT} Student-t intervals, two-sided paired t-tests, Holm's "
            f"adjustment within each setting. Gains are claimed from {MIN_PAIRS} paired seeds on. Over several "
            "settings nothing is adjusted: one in twenty true nulls would look clear",
        ),
        (
            "Seeds and users",
            f"{DRAWS:,} draws of seeds and of random groups of users, independently, with replacement; NE is computed "
            "anew in each. Intervals are widened for the number of seeds, as Student's are",
        ),
        ("Diverged runs", f"{DIVERGED_COUNTS}. It is shown in every table"),
        (
            "Ranks",
            "by mean NE within each setting, over the finished settings and joint methods that make the largest table "
            "without a gap; one model per task and searched static weights are references without a rank. Friedman "
            "test in the form of Iman and Davenport, critical difference of Nemenyi at level 0.05 (Demšar, JMLR 7, "
            "2006)",
        ),
        (
            "Choice of rates",
            "every method's learning rate, decay of the embedding tables and main option are chosen on validation rows "
            "with tuning seeds that the comparison does not use; the test rows have no part in it",
        ),
        (
            "Speed",
            "QPS over that of equal weights, measured in turn in one process. A difference is stated only where its "
            "interval excludes 1 and it is larger than that between two identical learners",
        ),
        ("Machines", "; ".join(dict.fromkeys(_machine(setting) for setting in suite.settings)) or "none"),
    ]  # fmt: skip


def _machine(setting: Setting) -> str:
    machine = setting.results.plan.machine
    cores = f", {counted(machine['cores'], 'core')}" if machine.get("cores") else ""
    accelerator = f", {machine['accelerator']}" if machine.get("accelerator") else ""
    return f"{machine.get('cpu', 'not recorded')}{cores}{accelerator}"
