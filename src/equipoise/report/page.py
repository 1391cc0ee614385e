"""The report of a comparison: one HTML file that opens offline, its tables as Markdown and as plain rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from equipoise.comparison.result_folder import ResultFolder
from equipoise.comparison.results import PlannedRuns, Results
from equipoise.report import tables
from equipoise.report import words as text
from equipoise.report.analysis import FEW_POSITIVES, MIN_PAIRS, Analysis, MethodResult, View, analyse, has_natural_view
from equipoise.report.calibration_chart import calibration_chart
from equipoise.report.cells import PERCENT, Table, number, percent, signed
from equipoise.report.charts import curve_chart, gain_chart, tuning_chart
from equipoise.report.diverged import DIVERGED_COUNTS
from equipoise.report.markdown import markdown_table, no_tags, one_line
from equipoise.report.measures import MEASURES, error_name
from equipoise.report.monitor_charts import cosine_chart, monitor_chart
from equipoise.report.outcome import against_static_weights, summary
from equipoise.report.phrases import counted
from equipoise.report.procedure_tables import data_table, methods_table, tuning_table
from equipoise.report.slices import slice_findings, slice_tables
from equipoise.report.user_groups import gap_table, group_findings, group_tables
from equipoise.report.web_page import write_page
from equipoise.settings import Settings, command_line
from equipoise.whole_files import write_whole

__all__ = ["headline", "result_rows", "write_markdown", "write_report"]

_ALWAYS_STATED = ("data", "model", "methods", "seeds", "epochs", "batch_size", "schedule")

_VIEW_TITLES: dict[View, str] = {
    "test": "Test rows as sampled",
    "test_natural": "Weighted back to the natural rate",
}
_KINDS: tuple[Literal["binary", "regression"], ...] = ("binary", "regression")
_MARKS = (
    "▲ clearly better, ▼ clearly worse (p < 0.05 after Holm's adjustment for the number of tests); "
    "△ ▽ only before that adjustment."
)


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a comparison, finished or not, and return its path.

    The file holds everything it needs (plotly.js too, about 5 MB) and asks nothing of a network.

    Raises:
        FolderError: the folder holds no comparison, or a file in it is damaged.
    """
    results = ResultFolder(folder).results()
    return write_page(folder / "report.html", "report.html.j2", _content(results))


def write_markdown(folder: Path) -> Path:
    """Write ``report.md``, the report's words and tables without its charts, and return its path.

    Raises:
        FolderError: the folder holds no comparison, or a file in it is damaged.
    """
    results = ResultFolder(folder).results()
    content = _content(results)
    lines = [f"# {no_tags(content['title'])}", "", no_tags(content["subtitle"]), ""]
    if results.plan.generated:
        lines += ["**Generated data: a program made these rows, nobody acted on them.**", ""]
    lines += [f"- {no_tags(caution)}" for caution in content["cautions"]]
    for view in content["views"]:
        lines += [
            "",
            f"## {view['title']}",
            "",
            no_tags(" ".join(view["summary"])),
            "",
            *markdown_table(view["main"]),
        ]
        lines += ["", f"Second lines are 95 % intervals. {_MARKS}"]
        for title, table in view["by_task"]:
            lines += ["", f"### {title}", "", *markdown_table(table)]
        if view["calibration_table"]:
            lines += ["", "### Calibration by task, 1 is right", "", *markdown_table(view["calibration_table"])]
        if view["transfer"]:
            lines += ["", "### Against training each task alone", "", no_tags(" ".join(view["transfer_summary"]))]
        for title, table in view["transfer"]:
            lines += ["", f"{title}:", "", *markdown_table(table)]
    if content["user_groups"]:
        lines += ["", "## Who gains, who loses", "", *(f"- {no_tags(found)}" for found in content["group_findings"])]
        if content["group_gaps"]:
            lines += ["", "### Gap in AUC between the groups served best and worst", ""]
            lines += markdown_table(content["group_gaps"])
        for title, table in content["user_groups"]:
            lines += ["", f"### {no_tags(title)}", "", *markdown_table(table)]
    if content["slices"]:
        lines += ["", "## Slices", "", *(f"- {no_tags(finding)}" for finding in content["slice_findings"])]
        for title, table in content["slices"]:
            lines += ["", f"### {no_tags(title)}", "", *markdown_table(table)]
    if content["tuning"]:
        lines += ["", "## Learning rates: validation mean NE", "", *markdown_table(content["tuning"])]
    lines += ["", "## Data", "", *(f"- {no_tags(note)}" for note in results.plan.dataset_notes), ""]
    lines += [*markdown_table(content["data"]), "", "## How it was done", ""]
    lines += [f"- {name}: {no_tags(value)}" for name, value in content["procedure"]]
    lines += ["", "```", content["command"], "```", ""]
    return write_whole(folder / "report.md", "\n".join(lines))


def result_rows(folder: Path) -> list[dict[str, str]]:
    """Return the report's main table for a terminal: per method, best mean NE first, column titles to their text.

    Raises:
        FolderError: the folder holds no comparison, or a file in it is damaged.
    """
    table = tables.main_table(analyse(ResultFolder(folder).results()))
    return [
        {column.title: one_line(cell) for column, cell in zip(table.columns, row.cells, strict=True)}
        for row in table.rows
    ]


def headline(folder: Path) -> str:
    """Return the outcome of a comparison in one sentence or two, as the report begins.

    Raises:
        FolderError: the folder holds no comparison, or a file in it is damaged.
    """
    return summary(analyse(ResultFolder(folder).results()))[0]


def _content(results: Results) -> dict[str, Any]:
    """Return everything that the template shows: words, tables and figures."""
    plan = results.plan
    shown: list[View] = ["test", "test_natural"] if has_natural_view(results) else ["test"]
    analyses = [analyse(results, view) for view in shown]
    tuned, sliced = bool(results.tuning), slice_tables(results, analyses[0])
    return {
        "title": f"Multi-task training methods on {plan.dataset}",
        "subtitle": (
            f"{counted(len(plan.methods), 'method')} compared on {counted(len(plan.tasks), 'task')} "
            f"({', '.join(plan.tasks)}), model {plan.model}, {counted(len(plan.seeds), 'seed')}; "
            f"{len(results.runs)} of {counted(results.planned, 'run')} finished."
        ),
        "plan": plan,
        "cautions": text.cautions(results, analyses[0]),
        "views": [_view(results, analysis) for analysis in analyses],
        "marks": _MARKS,
        "user_groups": group_tables(results, analyses[0]),
        "group_findings": group_findings(results, analyses[0]),
        "group_gaps": gap_table(results, analyses[0]),
        "slices": sliced,
        "slice_findings": slice_findings(results, analyses[0]) if sliced else [],
        "data": data_table(results),
        "curves": [chart for kind in _KINDS if (chart := curve_chart(results, kind))],
        "natural_rate": text.natural_rate(plan),
        "least_rows": FEW_POSITIVES,
        "about_numbers": any(plan.about(task).kind == "regression" for task in plan.tasks),
        "monitor": monitor_chart(results),
        "cosines": cosine_chart(results),
        "tuning": tuning_table(results) if tuned else None,
        "tuning_chart": tuning_chart(results) if tuned else None,
        "methods": methods_table(results),
        "procedure": _procedure(results),
        "command": _command(plan),
    }


def _view(results: Results, analysis: Analysis) -> dict[str, Any]:
    return {
        "name": analysis.view,
        "title": _VIEW_TITLES[analysis.view],
        "error": analysis.error,
        "summary": [*summary(analysis), *against_static_weights(results, analysis)],
        "tiles": _tiles(results, analysis),
        "gains": gain_chart(analysis),
        "main": tables.main_table(analysis),
        "by_task": _by_task(results, analysis),
        "calibration_table": tables.values_table(analysis, "calibration", binary, digits=3)
        if (binary := _binary(analysis))
        else None,
        "calibration": calibration_chart(results, analysis),
        "transfer_summary": text.transfer_summary(analysis),
        "transfer": _transfer(analysis),
    }


def _binary(analysis: Analysis) -> list[str]:
    return [task for task in analysis.tasks if task not in analysis.regressions]


def _by_task(results: Results, analysis: Analysis) -> list[tuple[str, Table]]:
    """Return a heading and a table for each measure that some task has."""
    binary, shown = _binary(analysis), []
    for measure in (MEASURES[name] for name in ("ne", "auc", "gauc")):
        if any(entry.tasks[task].values[measure.name] is not None for entry in analysis.methods for task in binary):
            reachable = results.plan.best_ne if measure.name == "ne" else None
            shown.append((measure.title, tables.task_table(analysis, measure, binary, reachable=reachable)))
    if analysis.regressions:
        shown.append(
            ("Regressions: RMSE and MAE, lower is better; R², higher is better", tables.regression_table(analysis))
        )
    return shown


def _transfer(analysis: Analysis) -> list[tuple[str, Table]]:
    """Return a heading and a table against training alone, for tasks of both kinds."""
    if not any(found.transfer for entry in analysis.methods for found in entry.tasks.values()):
        return []
    headings = {
        "ne": "NE gain over training alone, %", "auc": "AUC minus AUC of training alone",
        "rmse": "RMSE gain over training alone, %",
    }  # fmt: skip
    tasks_of = {"ne": _binary(analysis), "auc": _binary(analysis), "rmse": analysis.regressions}
    return [
        (headings[name], tables.transfer_table(analysis, MEASURES[name], tasks))
        for name, tasks in tasks_of.items()
        if tasks
    ]


def _tiles(results: Results, analysis: Analysis) -> list[tuple[str, str, str]]:
    """Return the numbers to see first: heading, value, meaning; gain and speed only where they are clear."""
    best = next((entry for entry in analysis.joint if entry.ne is not None), None)
    finished = ("Runs finished", f"{len(results.runs)} of {results.planned}", "methods × seeds")
    if best is None or not analysis.ranks:
        return [finished]
    tiles = [
        (
            f"Lowest mean {analysis.error}",
            best.method.label,
            number(best.ne, 4) + ("" if best.auc is None else f", AUC {number(best.auc, 4)}"),
        )
    ]
    gain = best.ne_gain
    if gain is not None and gain.mean is not None:
        found = gain.over_seeds
        ends = f"{signed(found.low, 2)} to {percent(found.high, 2)}"
        interval = "too few seeds" if gain.verdict == "untested" else f"95{PERCENT} interval {ends}"
        value = percent(gain.mean, 2) if gain.firm else "not clear"
        tiles.append((f"{analysis.error} gain over equal weights", value, interval))
    if best.speed is not None and not best.is_reference:
        tiles.append(("Its training speed", *_speed_in_short(best, analysis)))
    return [*tiles, finished]


def _speed_in_short(entry: MethodResult, analysis: Analysis) -> tuple[str, str]:
    if entry.speed_verdict == "unclear" and analysis.busy:
        return "not clear", "the machine was too busy"
    if entry.speed is None or entry.speed_verdict == "unclear":
        return "not clear", "against that of equal weights"
    if entry.speed_verdict == "same":
        return "the same", f"as equal weights, within 5{PERCENT}"
    return f"× {entry.speed.ratio:.3f}", "of that of equal weights"


def _procedure(results: Results) -> list[tuple[str, str]]:
    plan = results.plan
    rows = ", ".join(f"{count:,} {name}" for name, count in plan.rows.items())
    decay = "learning rate falling linearly to 0" if plan.schedule == "linear" else "constant learning rate"
    return [
        ("Data set", f"{plan.dataset}; rows: {rows}" if rows else plan.dataset),
        ("Model", plan.model),
        ("Training", f"Adam, {counted(plan.epochs, 'epoch')}, batches of {plan.batch_size:,} rows, {decay}"),
        ("Seeds", _seeds(plan.seeds)),
        ("Learning rates", _how_rates_were_chosen(results)),
        (
            "Statistics",
            "differences between methods are paired by seed; 95 % Student-t intervals of their mean; p from "
            "two-sided paired t-tests, adjusted with Holm's method within each table by task and each column "
            "of the main table. "
            f"{DIVERGED_COUNTS}. Gains are claimed from "
            f"{MIN_PAIRS} paired seeds on",
        ),
        (
            "What the intervals cover",
            "the choice of initial weights and batches, which the seeds stand for; not the choice of rows: all seeds "
            "are tested on the same rows, and other rows or users would give other numbers. Tasks with fewer than "
            f"{FEW_POSITIVES} test rows of one class are therefore in no mean",
        ),
        ("Determinism", _determinism(results)),
        (
            "Speed",
            "blocks of 10 steps of each method and of equal weights in turn, in one process; median ratio of their "
            "times. Equal weights are measured against themselves, too: a difference counts where its interval "
            "excludes 1 and it is larger than that between the two",
        ),
        ("Versions", _pairs(plan.versions)),
        ("Machine", _machine(plan.machine)),
    ]  # fmt: skip


def _how_rates_were_chosen(results: Results) -> str:
    plan = results.plan
    if not results.tuning:
        return "each method's own, given beforehand (see the table); not tuned in this comparison"
    rates = plan.grid or sorted({run.lr for run in results.tuning})
    decays = plan.decay_grid or sorted({run.table_decay for run in results.tuning})
    seeds = counted(plan.options.get("tune_seeds", 1), "tuning seed")
    tried = f"rates {', '.join(f'{lr:g}' for lr in rates)}"
    if len(decays) > 1:
        tried += f", each with decays of the embedding tables of {', '.join(f'{decay:g}' for decay in decays)}"
    trials = plan.options.get("tune_trials")
    if trials is not None:
        tried = (
            f"{counted(trials, 'pair')} of a rate from {rates[0]:g} to {rates[-1]:g} and a decay of the embedding "
            f"tables from {decays[0]:g} to {decays[-1]:g}, two thirds of them the same for every method, the rest by "
            "optuna's TPE sampler"
        )
    if others := plan.options.get("trials"):
        tried += "; another number of such pairs for " + ", ".join(f"{name}: {count}" for name, count in others.items())
    finalists = plan.options.get("tune_finalists", 0)
    chosen = ""
    if finalists:
        chosen = (
            f"; the best {finalists} of each method were trained with two more, and the mean over all decides, but for "
            "methods with a model per task"
        )
    return (
        f"each method's own, out of the same {'grid' if trials is None else 'search space'} for all ({tried}), by the "
        f"lowest mean validation {error_name(plan, plan.tasks).replace(' or ', ' and ')} over {seeds} "
        f"that the comparison does not use{chosen}"
    )


def _determinism(results: Results) -> str:
    if any(run.irreproducible for run in results.runs):
        return "a second run may differ in the last digits; the page says above why"
    return (
        "the same command gives the same numbers on the same machine with the same versions, whatever the number of "
        "worker processes: every run uses one thread"
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"{', '.join(map(str, seeds))}; the same initial weights and batches for every method within a seed"


def _command(plan: PlannedRuns) -> str:
    """Return the command that repeats this comparison, or the call if objects were given from Python.

    A folder is shown by its last part, because its path means nothing on another machine.
    """
    defaults = Settings.of().model_dump(mode="json")
    stated = {
        name: value
        for name, value in plan.options.items()
        if name in _ALWAYS_STATED or (name in defaults and value != defaults[name])
    }
    stated = {
        name: {key: _without_folder(entry) for key, entry in value.items()} if isinstance(value, dict) else value
        for name, value in stated.items()
    }
    if not plan.from_python:
        return command_line("compare", stated)
    objects = {"data": "dataset", "model": "model"}
    given = {objects.get(name, name): name for name in plan.from_python}
    arguments = [f"{'dataset' if 'data' in plan.from_python else repr(stated.pop('data', ''))},"]
    stated.pop("data", None)
    for name, value in stated.items():
        arguments.append(f"{name}={'model' if name == 'model' and name in plan.from_python else repr(value)},")
    comment = f"# given from Python: {', '.join(given)}"
    return "\n".join([comment, "equipoise.comparison.compare(", *(f"    {line}" for line in arguments), ")"])


def _without_folder(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "not recorded"


def _machine(machine: Mapping[str, Any]) -> str:
    if "cpu" not in machine:
        return "not recorded"
    cores = f", {counted(machine['cores'], 'core')}" if machine.get("cores") else ""
    accelerator = f", {machine['accelerator']}" if machine.get("accelerator") else ""
    return f"{machine['cpu']}{cores}{accelerator}"
