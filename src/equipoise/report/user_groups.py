"""Gains and losses of groups of users by balancing, and the gap between the groups served best and worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from equipoise.comparison.results import EQUAL_WEIGHTS, SINGLE_TASK, Results
from equipoise.report.analysis import FEW_POSITIVES, MIN_PAIRS, Analysis, Gain
from equipoise.report.cells import NONE, Cell, Column, Row, Table, between, number, percent, signed
from equipoise.report.measures import MEASURES
from equipoise.report.phrases import counted, listed
from equipoise.report.slices import SlicedTask, sliced_tasks
from equipoise.report.statistics import holm, paired_comparison, relative_gain
from equipoise.report.tables import gain_text, ground_colour
from equipoise.training.run import Slice

__all__ = ["GroupGap", "GroupMean", "gap_table", "group_findings", "group_gaps", "group_means", "group_tables"]

_MOST_NAMED: Final = 4


@dataclass(frozen=True)
class GroupGap:
    """The AUC of the group served best minus that of the group served worst, on one task.

    Attributes:
        best, worst: these groups under equal weights, by mean AUC.
        before: the gap under equal weights, mean over seeds.
        after: the gap with the method; its best and worst groups may be others.
        change: after minus before, paired by seed; below zero the groups have come closer.
    """

    column: str
    method: str
    task: str
    best: str
    worst: str
    before: float
    after: float
    change: Gain


def group_gaps(results: Results, analysis: Analysis) -> list[GroupGap]:
    """Return the gaps of every joint method but equal weights, p values adjusted (Holm) within each method.

    Binary tasks only, whose AUC is comparable between groups. Groups with few test rows of either class of the task
    (:attr:`SlicedTask.judged`) have no part, and a task with fewer than two other groups has no gap.
    """
    judged = {
        (entry.column, entry.task, entry.value)
        for entry in _of_users(results, analysis)
        if entry.judged and entry.positives is not None and entry.method == EQUAL_WEIGHTS
    }
    found = []
    for method in _compared(results):
        gaps = []
        for column in results.plan.user_groups:
            for task in analysis.tasks:
                groups = [value for of, about, value in judged if (of, about) == (column, task)]
                before, after = (_areas(results, name, column, task, groups) for name in (EQUAL_WEIGHTS, method))
                seeds = before.keys() & after.keys()
                before, after = ({seed: areas[seed] for seed in sorted(seeds)} for areas in (before, after))
                if len(groups) < 2 or not seeds:
                    continue
                means = {
                    group: _mean({seed: areas[group] for seed, areas in before.items()}) for group in sorted(groups)
                }
                best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
                change = Gain(paired_comparison(_gaps(after), _gaps(before)))
                gaps.append(
                    GroupGap(column, method, task, best, worst, _mean(_gaps(before)), _mean(_gaps(after)), change)
                )
        adjusted = holm([gap.change.over_seeds.p for gap in gaps])
        found += [replace(gap, change=replace(gap.change, adjusted_p=p)) for gap, p in zip(gaps, adjusted, strict=True)]
    return found


@dataclass(frozen=True)
class GroupMean:
    """The gain in mean NE (NSE) over equal weights in one group, over the tasks that have enough rows of it.

    Attributes:
        tasks: their number.
        gain: in per cent, paired by seed, its p value adjusted (Holm) for all groups of the method.
    """

    column: str
    value: str
    method: str
    tasks: int
    gain: Gain


def group_means(results: Results, analysis: Analysis) -> list[GroupMean]:
    """Return the gain of every joint method in every group, over the group's tasks with enough rows."""
    judged: dict[tuple[str, str], list[str]] = {}
    for entry in _of_users(results, analysis):
        if entry.judged and entry.method == EQUAL_WEIGHTS and entry.task not in analysis.few:
            judged.setdefault((entry.column, entry.value), []).append(entry.task)
    found = []
    for method in _compared(results):
        means = []
        for (column, value), tasks in judged.items():
            mine, theirs = (_errors(results, name, column, value, tasks) for name in (method, EQUAL_WEIGHTS))
            gain = Gain(relative_gain(mine, theirs, higher_is_better=False))
            means.append(GroupMean(column, value, method, len(tasks), gain))
        adjusted = holm([entry.gain.over_seeds.p for entry in means])
        found += [
            replace(entry, gain=replace(entry.gain, adjusted_p=p)) for entry, p in zip(means, adjusted, strict=True)
        ]
    return found


def group_findings(results: Results, analysis: Analysis) -> list[str]:
    """Say of each method which groups clearly gain and lose, and whether the gap between groups has changed."""
    entries = [entry for entry in _of_users(results, analysis) if entry.task not in analysis.few]
    if not entries:
        return []
    said = []
    gaps = group_gaps(results, analysis)
    for method in _compared(results):
        label = _label(results, method)
        here = [entry for entry in entries if entry.method == method and entry.judged and entry.gain is not None]
        if all(entry.gain is None or entry.gain.verdict == "untested" for entry in here):
            said.append(f"{label}: nothing can be said of any group; that takes {MIN_PAIRS} paired seeds.")
            continue
        means = [entry for entry in group_means(results, analysis) if entry.method == method]
        better = [entry for entry in means if entry.gain.firm and entry.gain.better]
        worse = [entry for entry in means if entry.gain.firm and entry.gain.worse]
        outcome = f"{_groups_named(better, 'gain')}; {_groups_named(worse, 'loss')}; the others are not clear"
        said.append(f"{label} against equal weights, mean NE of {counted(len(means), 'group')}: {outcome}.")
        firm = [(entry, entry.gain) for entry in here if entry.gain is not None and entry.gain.firm]
        gains = [(entry, gain.mean or 0.0) for entry, gain in firm if gain.better]
        losses = [(entry, gain.mean or 0.0) for entry, gain in firm if gain.worse]
        said.append(
            f"{label}, the {counted(len(here), 'cell')} of group and task: "
            f"{_named(gains, 'clear gain', 'clear gains')}; {_named(losses, 'clear loss', 'clear losses')}."
        )
        moved = [gap for gap in gaps if gap.method == method and gap.change.firm]
        closer = [gap for gap in moved if gap.change.worse]  # a smaller gap
        apart = [gap for gap in moved if gap.change.better]
        if not moved:
            said.append(f"{label}: the gap between the groups served best and worst changes clearly on no task.")
        for several, verb in ((closer, "narrows"), (apart, "widens")):
            if several:
                places = listed([f"{gap.task} by {gap.column} ({_gap_text(gap)})" for gap in several])
                said.append(f"{label} clearly {verb} the gap between the groups served best and worst on {places}.")
    smallest = min(entries, key=lambda entry: entry.rows)
    least = max(entry.rows for entry in entries if (entry.column, entry.value) == (smallest.column, smallest.value))
    said.append(
        f"The smallest group is {_place(smallest)} with {least:,} test rows. A group has a say on a task from "
        f"{FEW_POSITIVES} test rows of each class on, and a group's mean is over these tasks: means of groups that "
        "differ in them do not compare. Intervals are over seeds, not over users."
    )
    return said


def group_tables(results: Results, analysis: Analysis) -> list[tuple[str, Table]]:
    """Return a table per column and method: groups by tasks, with the change of AUC and the gain in NE."""
    entries = _of_users(results, analysis)
    equal = {(entry.column, entry.value, entry.task): entry for entry in entries if entry.method == EQUAL_WEIGHTS}
    means = {(entry.column, entry.value, entry.method): entry for entry in group_means(results, analysis)}
    tables = []
    for column in results.plan.user_groups:
        for method in _compared(results):
            here = [entry for entry in entries if (entry.column, entry.method) == (column, method)]
            rows = []
            for value in dict.fromkeys(entry.value for entry in here):
                of_group = {entry.task: entry for entry in here if entry.value == value}
                cells = [_cell(of_group.get(task), equal.get((column, value, task))) for task in analysis.tasks]
                most = max(entry.rows for entry in of_group.values())
                rows.append(
                    Row(
                        [
                            Cell(value or "all others"),
                            Cell(f"{most:,}"),
                            _mean_cell(means.get((column, value, method))),
                            *cells,
                        ]
                    )
                )
            if rows:
                titles = [Column(task, "NE gain over equal weights, and the change of AUC.") for task in analysis.tasks]
                headings = [
                    Column("Test rows", "Rows with a label of any task."),
                    Column("Mean", "Gain in mean NE over the tasks that have enough rows of the group."),
                ]
                table = Table([Column(column, numeric=False), *headings, *titles], rows)
                tables.append((f"{column}, {_label(results, method)} against equal weights", table))
    return tables


def gap_table(results: Results, analysis: Analysis) -> Table | None:
    """Return the gaps in AUC between the groups served best and worst; None where there is none."""
    gaps = group_gaps(results, analysis)
    if not gaps:
        return None
    titles = ("Groups", "Task", "Method", "Best and worst under equal weights", "Gap before", "Gap after", "Change")
    columns = [Column(title, numeric=place > 3) for place, title in enumerate(titles)]
    rows = [
        Row([
            Cell(gap.column), Cell(gap.task), Cell(_label(results, gap.method)),
            Cell(f"{gap.best or 'all others'}, {gap.worst or 'all others'}"), Cell(number(gap.before, 4)),
            Cell(number(gap.after, 4)),
            Cell(
                signed(gap.change.mean, 4) + _arrow(gap.change), between(gap.change.over_seeds, 4),
                tone="warn" if gap.change.firm and gap.change.better else "",
            ),
        ])
        for gap in gaps
    ]  # fmt: skip
    return Table(columns, rows)


def _arrow(change: Gain) -> str:
    """Return an arrow for a clear change; its direction is that of the gap, not of quality."""
    return "" if not change.firm else " wider" if change.better else " narrower"


def _mean_cell(entry: GroupMean | None) -> Cell:
    if entry is None:
        return Cell(NONE, "few rows")
    measure = MEASURES["ne"]
    return Cell(
        gain_text(entry.gain, measure, marked=True), between(entry.gain.over_seeds, 1),
        hint=f"over {counted(entry.tasks, 'task')}", background=ground_colour(entry.gain, measure),
    )  # fmt: skip


def _cell(entry: SlicedTask | None, reference: SlicedTask | None) -> Cell:
    if entry is None:
        return Cell(NONE)
    counts = f"{entry.rows:,} rows" + ("" if entry.positives is None else f", {entry.positives:,} positive")
    if not entry.judged:
        return Cell(NONE, "few rows", hint=counts)
    measure = MEASURES["ne"]
    below = ""
    if entry.positives is not None and reference is not None:
        below = f"AUC {signed(entry.values['auc'] - reference.values['auc'], 4)}"
    hint = counts
    if entry.gain is not None and entry.gain.mean is not None:
        hint += f"; {between(entry.gain.over_seeds, 2, ' %')}"
    return Cell(
        gain_text(entry.gain, measure, marked=True), below, hint=hint, background=ground_colour(entry.gain, measure)
    )


def _of_users(results: Results, analysis: Analysis) -> list[SlicedTask]:
    return [entry for entry in sliced_tasks(results, analysis) if entry.column in results.plan.user_groups]


def _compared(results: Results) -> list[str]:
    return [method.name for method in results.plan.methods if method.name not in {EQUAL_WEIGHTS, SINGLE_TASK}]


def _label(results: Results, name: str) -> str:
    return next(method.label for method in results.plan.methods if method.name == name)


def _areas(
    results: Results, method: str, column: str, task: str, groups: Sequence[str]
) -> dict[int, Mapping[str, float]]:
    """Return seed -> group -> AUC, for the seeds that ended well."""
    found: dict[int, Mapping[str, float]] = {}
    for run in results.of(method):
        if run.status == "ok":
            parts = {_value(part): part["tasks"][task]["auc"] for part in run.slices.get(column, [])}
            if all(group in parts for group in groups):
                found[run.seed] = {group: parts[group] for group in groups}
    return found


def _errors(results: Results, method: str, column: str, value: str, tasks: Sequence[str]) -> dict[int, float]:
    """Return seed -> mean NE (NSE) over some tasks in one group, for the seeds that ended well."""
    found = {}
    for run in results.of(method):
        for part in run.slices.get(column, []) if run.status == "ok" else []:
            if _value(part) == value:
                found[run.seed] = sum(part["tasks"][task]["ne"] for task in tasks) / len(tasks)
    return found


def _value(part: Slice) -> str:
    """Return the value of a slice, empty for the one of several rare values, as :func:`sliced_tasks` names them."""
    return "" if part["values"] > 1 else part["value"] or "(empty)"


def _gaps(areas: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    return {seed: max(by_group.values()) - min(by_group.values()) for seed, by_group in areas.items()}


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)


def _gap_text(gap: GroupGap) -> str:
    return f"AUC {number(gap.before, 4)} to {number(gap.after, 4)}"


def _place(entry: SlicedTask) -> str:
    return f"{entry.column} {entry.value}" if entry.value else f"the rarer values of {entry.column}"


def _groups_named(entries: Sequence[GroupMean], what: str) -> str:
    """Return a count with the groups: `clear gain in 2 (age 19-24 +2.1 %, age 65+ +1.0 %)`."""
    if not entries:
        return f"no clear {what}"
    ordered = sorted(entries, key=lambda entry: -abs(entry.gain.mean or 0.0))
    places = [
        f"{entry.column} {entry.value or 'rarer'} {percent(entry.gain.mean, 1)}" for entry in ordered[:_MOST_NAMED]
    ]
    more = [f"{len(entries) - _MOST_NAMED} more"] if len(entries) > _MOST_NAMED else []
    return f"clear {what} in {len(entries)} ({', '.join([*places, *more])})"


def _named(entries: Sequence[tuple[SlicedTask, float]], one: str, several: str) -> str:
    """Return a count with the largest by name: `3 clear gains (age 19-24: coupon +2.1 %, ...)`."""
    if not entries:
        return f"no {one}"
    ordered = sorted(entries, key=lambda pair: -abs(pair[1]))
    places = [f"{_place(entry)}: {entry.task} {percent(value, 1)}" for entry, value in ordered[:_MOST_NAMED]]
    more = [f"{len(entries) - _MOST_NAMED} more"] if len(entries) > _MOST_NAMED else []
    return f"{len(entries)} {one if len(entries) == 1 else several} ({', '.join([*places, *more])})"
