"""The evidence page's tables: over all settings, for each setting, and about tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from equipoise.comparison.results import EQUAL_WEIGHTS
from equipoise.report.analysis import Gain
from equipoise.report.cells import (
    NONE,
    PERCENT,
    Cell,
    Column,
    Row,
    Table,
    between,
    number,
    percent,
    with_columns,
)
from equipoise.report.diverged import DIVERGED_COUNTS
from equipoise.report.evidence.duel import static_duels
from equipoise.report.evidence.overall import MethodOverall, Overall
from equipoise.report.evidence.sensitivity import Sensitivity, average_spreads, gains_by_baseline_trials, sensitivities
from equipoise.report.evidence.suite import Setting, Suite
from equipoise.report.measures import MEASURES
from equipoise.report.phrases import counted
from equipoise.report.statistics import Interval
from equipoise.report.tables import ground_colour, main_table, mark, name_cell, row_kind, transfer_table, values_table

__all__ = [
    "fullest_settings_table",
    "gains_by_setting",
    "overall_table",
    "sensitivity_table",
    "setting_table",
    "setting_tables",
    "static_table",
    "task_gain_table",
    "tuning_gain_table",
]

_NE = MEASURES["ne"]


def overall_table(overall: Overall) -> Table:
    """Build the table of methods over all settings: rank, gains, tasks, cost and diverged runs."""
    columns = [
        Column("Method", numeric=False),
        Column("Average rank", "By mean NE within each ranked setting; 1 is the best of the joint methods."),
        Column("Mean gain", "Mean over the ranked settings of the NE gain over equal weights."),
        Column(
            "Settings better / unclear / worse",
            "By the 95 % interval over seeds. Below: after Holm's adjustment for the number of methods.",
        ),
        Column("Tasks better / worse", "Clearly better or worse in NE, after Holm's adjustment; out of all tested."),
        Column(
            "Speed",
            "Geometric mean of the QPS ratios over the settings where their 95 % interval is within about 10 %.",
        ),
        Column("Memory", "Geometric mean of peak memory over that of equal weights."),
        Column("Diverged", f"{DIVERGED_COUNTS}."),
    ]
    rows = []
    for method in overall.methods:
        better, unclear, worse = method.counts()
        firm = method.counts(firm=True)
        compared = bool(method.gains)
        rows.append(
            Row(
                [
                    Cell(method.label, _reference_note(method), method.summary),
                    Cell(number(method.rank, 2)),
                    Cell(NONE if method.mean_gain is None or method.is_reference else percent(method.mean_gain, 2)),
                    Cell(f"{better} / {unclear} / {worse}", f"Holm {firm[0]} / {firm[1]} / {firm[2]}")
                    if compared
                    else Cell(NONE),
                    Cell(f"{len(method.tasks_better)} / {len(method.tasks_worse)}", f"of {method.tasks}")
                    if compared
                    else Cell(NONE),
                    Cell(NONE if method.speed is None else f"× {method.speed:.2f}"),
                    Cell(NONE if method.memory is None else f"× {method.memory:.2f}"),
                    Cell(f"{method.diverged} of {method.runs}", tone="warn" if method.diverged else ""),
                ],
                _kind(method),
            )
        )
    return _without_empty_columns(Table(columns, rows))


def _without_empty_columns(table: Table) -> Table:
    """Return a table without the columns in which nothing is known of any row."""
    kept = [place for place in range(len(table.columns)) if any(row.cells[place].text != NONE for row in table.rows)]
    return Table(
        [table.columns[place] for place in kept],
        [replace(row, cells=[row.cells[place] for place in kept]) for row in table.rows],
    )


def _kind(method: MethodOverall) -> Literal["", "reference", "aside"]:
    return "reference" if method.is_reference else "" if method.is_joint else "aside"


def _reference_note(method: MethodOverall) -> str:
    if method.is_reference:
        return "the reference"
    if method.is_single_task:
        return "one model per task"
    if method.is_static:
        return "given beforehand" if ":" in method.name else "searched, a training per trial"
    return ""


def gains_by_setting(suite: Suite, overall: Overall) -> Table:
    """Build a table of methods by settings: the gain in mean NE, with its interval over seeds and its mark.

    Empty where no setting has gains.
    """
    shown = [setting for setting in suite.settings if setting.has_gains]
    if not shown:
        return Table([], [])
    columns = [
        Column("Method", numeric=False),
        *(Column(setting.title if setting.finished else f"{setting.title} (unfinished)") for setting in shown),
    ]
    rows = []
    for method in overall.methods:
        if method.is_reference:
            continue
        cells = []
        for setting in shown:
            entry = setting.analysis.method(method.name)
            cells.append(_gain_cell(entry.ne_gain if entry else None, setting.gains_over_users.get(method.name)))
        rows.append(Row([Cell(method.label, hint=method.summary), *cells], _kind(method)))
    return Table(columns, rows)


def fullest_settings_table(suite: Suite, overall: Overall) -> Table:
    """Build the table of the settings with results of nearly all methods: which gain and which lose, best first."""
    counts = {
        setting.name: sum(setting.name in method.gains for method in overall.methods) for setting in suite.settings
    }
    fullest = [setting for setting in suite.settings if counts[setting.name] >= 0.9 * max(counts.values(), default=0)]
    columns = [
        Column("Setting", numeric=False),
        Column("Clearly better than equal weights", "After Holm's adjustment, best first.", numeric=False),
        Column("Not clear", "How many methods are neither clearly better nor clearly worse."),
        Column("Clearly worse", "After Holm's adjustment, best first.", numeric=False),
    ]
    rows = []
    for setting in fullest:
        found = [(method, method.gains[setting.name]) for method in overall.methods if setting.name in method.gains]
        found.sort(key=lambda pair: pair[1].mean or 0.0, reverse=True)
        firm = [(f"{method.label} {percent(gain.mean, 2)}", gain) for method, gain in found if gain.firm]
        better = "; ".join(said for said, gain in firm if gain.better)
        worse = "; ".join(said for said, gain in firm if gain.worse)
        unclear = str(len(found) - len(firm))
        rows.append(Row([Cell(setting.title), Cell(better or "none"), Cell(unclear), Cell(worse or "none")]))
    return Table(columns, rows)


def _gain_cell(gain: Gain | None, over_users: Interval | None, *, digits: int = 2) -> Cell:
    """Return a gain with its mark and the interval over seeds, coloured where it is clear."""
    if gain is None or gain.mean is None:
        return Cell(NONE)
    hint = "" if over_users is None else f"over seeds and users {between(over_users, digits)}{PERCENT}"
    return Cell(
        f"{mark(gain)} {percent(gain.mean, digits)}".strip(),
        between(gain.over_seeds, digits),
        hint,
        background=ground_colour(gain, _NE),
    )


def setting_table(setting: Setting) -> Table:
    """Build the table of one setting: that of its report, with log loss, miscalibration and intervals over users."""
    analysis = setting.analysis
    table = main_table(analysis)
    gain = next(column.title for column in table.columns if column.title.endswith("gain over equal weights"))
    if setting.gains_over_users:
        hint = "95 % interval over seeds and users: both are drawn anew, 2,000 times."
        cells = [[_users_cell(setting.gains_over_users.get(entry.method.name))] for entry in analysis.ranked]
        table = with_columns(table, gain, [Column("… seeds and users", hint)], cells)
    log_losses = [_said("log loss", number(entry.log_loss, 4), entry.log_loss) for entry in analysis.ranked]
    table = _with_second_lines(table, "Mean AUC", "Below: mean log loss.", log_losses)
    off = [_said("off by", _share(entry.miscalibration), entry.miscalibration) for entry in analysis.ranked]
    meaning = "Below: calibration, as the mean over tasks of |mean prediction / mean label − 1|."
    return _with_second_lines(table, f"Mean {analysis.error}", meaning, off)


def _said(name: str, text: str, value: float | None) -> str:
    return "" if value is None else f"{name} {text}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}{PERCENT}"


def _with_second_lines(table: Table, title: str, meaning: str, lines: Sequence[str]) -> Table:
    """Return a table with second lines in the column of that title; unchanged without such a column."""
    places = [place for place, column in enumerate(table.columns) if column.title == title]
    if not places or not any(lines):
        return table
    columns, rows = list(table.columns), []
    columns[places[0]] = replace(columns[places[0]], hint=f"{columns[places[0]].hint} {meaning}")
    for row, line in zip(table.rows, lines, strict=True):
        cells = list(row.cells)
        cells[places[0]] = replace(cells[places[0]], below=line)
        rows.append(replace(row, cells=cells))
    return Table(columns, rows)


def _users_cell(found: Interval | None) -> Cell:
    return (
        Cell(NONE) if found is None else Cell(between(found, 2), "excludes 0" if found.excludes_zero else "includes 0")
    )


def task_gain_table(setting: Setting) -> Table:
    """Build a table of methods by tasks: the gain in NE over equal weights, with each task's positive test rows."""
    analysis = setting.analysis
    columns = [Column("Method", numeric=False), *(_task_column(setting, task) for task in analysis.tasks)]
    rows = []
    for entry in analysis.ranked:
        if entry.is_reference:
            continue
        cells = [
            _gain_cell(
                entry.tasks[task].gains.get("ne"), setting.task_gains_over_users[task].get(entry.method.name), digits=1
            )
            for task in analysis.tasks
        ]
        rows.append(Row([name_cell(entry), *cells], row_kind(entry)))
    return Table(columns, rows)


def _task_column(setting: Setting, task: str) -> Column:
    count = setting.results.plan.label_counts.get("test", {}).get(task)
    rows = ""
    if count is not None:
        rows = f", {count.labelled:,} rows" if count.positives is None else f", {count.positives:,} positives"
    few = "Too few test rows of one class: mostly chance, in no mean." if task in setting.analysis.few else ""
    return Column(f"{task}{rows}", few)


def setting_tables(setting: Setting) -> list[tuple[str, Table]]:
    """Return the other tables of a setting with their headings: transfer, NE, AUC, log loss and calibration by task."""
    analysis = setting.analysis
    binary = [task for task in analysis.tasks if task not in analysis.regressions]
    found = []
    if any(task.transfer for entry in analysis.methods for task in entry.tasks.values()):
        heading = f"Negative transfer: NE gain over one model per task, {PERCENT.strip()}; below zero the task loses"
        found.append((heading, transfer_table(analysis, _NE, analysis.tasks)))
    error = "NE (of regressions NSE)" if analysis.regressions else "NE"
    found.append((f"{error} by task, lower is better", values_table(analysis, "ne", analysis.tasks, digits=4)))
    if binary:
        found += [
            ("AUC by task, higher is better", values_table(analysis, "auc", binary, digits=4)),
            ("Log loss by task, lower is better", values_table(analysis, "log_loss", binary, digits=4)),
            ("Calibration by task, 1 is right", values_table(analysis, "calibration", binary, digits=3)),
        ]
    return found


def sensitivity_table(suite: Suite, overall: Overall) -> Table | None:
    """Build a table of methods by settings: what all trials gave on validation rows; None without any tuning."""
    tuned = {setting.name: {found.name: found for found in sensitivities(setting)} for setting in suite.settings}
    shown = [setting for setting in suite.settings if tuned[setting.name]]
    if not shown:
        return None
    average = average_spreads(shown)
    columns = [
        Column("Method", numeric=False),
        Column("On average", "Over all settings, of the methods that were tuned in each."),
        *(Column(setting.title) for setting in shown),
    ]
    rows = []
    for method in overall.methods:
        cells = [_trials_cell(tuned[setting.name].get(method.name), method) for setting in shown]
        if any(cell.text != NONE for cell in cells):
            mean = Cell(percent(average[method.name], 1) if method.name in average else NONE)
            rows.append(Row([Cell(method.label, hint=method.summary), mean, *cells], _kind(method)))
    return Table(columns, rows)


def _trials_cell(found: Sensitivity | None, method: MethodOverall) -> Cell:
    """Return how far the median trial is above the best, and the share of trials better than tuned equal weights."""
    if found is None:
        return Cell(NONE)
    share = found.better_than_baseline
    better = "" if share is None or method.is_reference else f"{100 * share:.0f}{PERCENT} better"
    count = f"{len(found.errors)} trials" + (f", {found.diverged} diverged" if found.diverged else "")
    errors = f"best {found.best:.4f}, median {found.median:.4f}, worst {found.worst:.4f}"
    return Cell(percent(found.spread, 1), better, f"{count}: {errors}")


def static_table(suite: Suite, focus: MethodOverall | None) -> Table | None:
    """Build a table of settings: what static weights gained, and the gain of one training of a method over them."""
    found = static_duels(suite, focus.name) if focus else []
    if not found or focus is None:
        return None
    columns = [
        Column("Setting", numeric=False),
        Column("Trainings to find them", "Trials of rate, table decay and weights, on validation rows."),
        Column("Static weights over equal weights"),
        Column(f"{focus.label} over static weights", "Paired by seed; p adjusted for the number of settings (Holm)."),
    ]
    rows = [
        Row(
            [
                Cell(duel.setting.title),
                Cell(str(duel.trials) if duel.trials else "given"),
                _gain_cell(duel.opponent.ne_gain, None),
                _gain_cell(duel.gain, None),
            ]
        )
        for duel in found
    ]
    return Table(columns, rows)


_BASELINE_TRIALS = (1, 2, 4, 8, 16, 32)


def tuning_gain_table(suite: Suite, focus: MethodOverall | None) -> Table | None:
    """Build a table of settings by trials of equal weights: the gain of a method's best trial over theirs."""
    found = {setting.title: {method.name: method for method in sensitivities(setting)} for setting in suite.settings}
    tuned = {
        title: (methods[focus.name], methods[EQUAL_WEIGHTS])
        for title, methods in found.items()
        if focus and focus.name in methods and EQUAL_WEIGHTS in methods
    }
    if not tuned:
        return None
    most = max(len(baseline.errors) for _, baseline in tuned.values())
    shown = [trials for trials in _BASELINE_TRIALS if trials < most]
    columns = [
        Column("Setting", numeric=False),
        *(Column(counted(trials, "trial")) for trials in shown),
        Column("All trials"),
    ]
    rows = []
    for title, (method, baseline) in tuned.items():
        gains = gains_by_baseline_trials(method, baseline)
        cells = [Cell(percent(gains[trials - 1], 2) if trials < len(gains) else NONE) for trials in shown]
        rows.append(Row([Cell(title), *cells, Cell(percent(gains[-1], 2), f"of {len(gains)}")]))
    return Table(columns, rows)
