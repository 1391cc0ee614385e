"""Slices of the test rows: where a method falls behind equal weights, or behind its own result over all rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from scipy import special

from equipoise.comparison.results import EQUAL_WEIGHTS, PlannedRuns, Results
from equipoise.report.analysis import FEW_POSITIVES, SIGNIFICANCE, Analysis, Gain
from equipoise.report.cells import NONE, Cell, Column, Row, Table, number, percent
from equipoise.report.measures import MEASURES
from equipoise.report.phrases import counted, listed
from equipoise.report.statistics import holm, relative_gain
from equipoise.report.tables import gain_text

__all__ = ["SlicedTask", "auc_error", "slice_findings", "slice_tables", "sliced_tasks"]

_MOST_NAMED: Final = 5  # slices in one sentence
_LEAST_MISCALIBRATED: Final = math.log(1.1)
_ORANGE: Final = "rgba(213, 94, 0, 0.22)"


@dataclass(frozen=True, eq=False)
class SlicedTask:
    """One task of one method on one slice.

    Attributes:
        column, value: the column and the name of its value; "" for the rest, which holds several.
        rows, positives: rows with the task's label, and those with a positive one (None for a regression).
        values: means over the seeds that ended well.
        gain: in normalized error over equal weights, in per cent; None for equal weights itself.
        behind: AUC is below that over all rows, or calibration off it, by more than chance alone would give.
    """

    column: str
    value: str
    rows: int
    positives: int | None
    method: str
    task: str
    values: Mapping[str, float]
    gain: Gain | None
    behind: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        """True if there are enough rows of both classes to call anything a finding."""
        scarcest = self.rows if self.positives is None else min(self.positives, self.rows - self.positives)
        return scarcest >= FEW_POSITIVES


def auc_error(auc: float, positives: int, negatives: int) -> float:
    """Return the standard error of an AUC: Hanley and McNeil, Radiology 143, 1982, equation 2.

    Example:
        >>> round(auc_error(0.8, 100, 900), 4)
        0.0272
    """
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (first - auc**2) + (negatives - 1) * (second - auc**2)
    return math.sqrt(max(0.0, spread) / (positives * negatives))


def sliced_tasks(results: Results, analysis: Analysis) -> list[SlicedTask]:
    """Return every task of every method on every slice, p values adjusted (Holm) within the slices of a column."""
    columns = dict.fromkeys(column for run in results.runs if run.status == "ok" for column in run.slices)
    return [found for column in columns for found in _of_column(results, analysis, column)]


def slice_findings(results: Results, analysis: Analysis) -> list[str]:
    """Say which slices fall behind: of each method against equal weights, and of the best against all its rows."""
    found = [entry for entry in sliced_tasks(results, analysis) if entry.task not in analysis.few]
    judged = [entry for entry in found if entry.judged]
    if not judged:
        return [f"No slice has {FEW_POSITIVES} test rows of each class of any task, so that nothing is said about any."]
    said = []
    for method in analysis.joint:
        worse = {
            entry: entry.gain.mean or 0.0
            for entry in judged
            if entry.method == method.method.name and entry.gain and entry.gain.worse and entry.gain.firm
        }
        if worse:
            ordered = sorted(worse, key=lambda entry: worse[entry])
            places = _places({entry: percent(worse[entry], 1) for entry in ordered})
            said.append(f"{method.method.label} is clearly worse than equal weights where {places}.")
    best = _shown(analysis)
    if best is not None:
        entry_of = next(entry for entry in analysis.methods if entry.method.name == best)
        for measure, digits, verb, called in (("auc", 3, "ranks", "AUC "), ("calibration", 2, "is calibrated", "")):
            behind = [entry for entry in judged if entry.method == best and measure in entry.behind]
            behind.sort(key=lambda entry: -abs(math.log(entry.values[measure])))
            places = _places({
                entry: f"{called}{number(entry.values[measure], digits)}, over all rows "
                       f"{number(entry_of.tasks[entry.task].values[measure], digits)}"
                for entry in behind
            })  # fmt: skip
            if behind:
                said.append(f"{entry_of.method.label} {verb} clearly worse than over all rows where {places}.")
    return said or ["No slice falls behind clearly: no method is worse than equal weights on any, beyond chance."]


def slice_tables(results: Results, analysis: Analysis) -> list[tuple[str, Table]]:
    """Return a table per column: its slices by tasks, with AUC (regressions: NSE) of the best joint method."""
    best = _shown(analysis)
    found = [entry for entry in sliced_tasks(results, analysis) if entry.method == best]
    label = next((method.label for method in results.plan.methods if method.name == best), "")
    tables = []
    for column in dict.fromkeys(entry.column for entry in found):
        here = [entry for entry in found if entry.column == column]
        rows = []
        for value in dict.fromkeys(entry.value for entry in here):
            cells = {entry.task: _cell(entry) for entry in here if entry.value == value}
            most = max(entry.rows for entry in here if entry.value == value)
            rows.append(Row([Cell(value or "all others"), Cell(f"{most:,}"),
                             *(cells.get(task, Cell(NONE)) for task in analysis.tasks)]))  # fmt: skip
        titles = [
            Column(task, "NSE, lower is better." if task in analysis.regressions else "AUC, higher is better.")
            for task in analysis.tasks
        ]
        heading = Column("Labelled rows", "Test rows with a label of any task.")
        tables.append((f"{column}, {label}", Table([Column(column, numeric=False), heading, *titles], rows)))
    return tables


def _of_column(results: Results, analysis: Analysis, column: str) -> Iterator[SlicedTask]:
    plan = results.plan
    values: dict[tuple[str, str, str], dict[int, Mapping[str, float]]] = {}  # method, value, task -> seed -> metrics
    for method in plan.methods:
        for run in results.of(method.name):
            for part in run.slices.get(column, []) if run.status == "ok" else []:
                value = "" if part["values"] > 1 else part["value"] or "(empty)"
                for task in analysis.tasks:
                    values.setdefault((method.name, value, task), {})[run.seed] = part["tasks"][task]
    found = []
    for (name, value, task), by_seed in values.items():
        first = next(iter(by_seed.values()))
        positives = int(first["positives"]) if plan.about(task).kind == "binary" else None
        equal = values.get((EQUAL_WEIGHTS, value, task), {}) if name != EQUAL_WEIGHTS else {}
        gain = Gain(relative_gain(_errors(by_seed), _errors(equal), higher_is_better=False)) if equal else None
        means = {metric: math.fsum(each[metric] for each in by_seed.values()) / len(by_seed) for metric in first}
        found.append(SlicedTask(column, value, int(first["rows"]), positives, name, task, means, gain))
    adjusted = holm([entry.gain.over_seeds.p if entry.gain and entry.judged else None for entry in found])
    tests = sum(entry.judged for entry in found if entry.method == _shown(analysis)) * 2
    for entry, p in zip(found, adjusted, strict=True):
        gain = entry.gain and replace(entry.gain, adjusted_p=p)
        yield replace(entry, gain=gain, behind=_behind(entry, plan, analysis, tests) if entry.judged else ())


def _errors(by_seed: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    return {seed: metrics["ne"] for seed, metrics in by_seed.items() if metrics["ne"] > 0}


def _behind(entry: SlicedTask, plan: PlannedRuns, analysis: Analysis, tests: int) -> tuple[str, ...]:
    """Compare with all rows, as if they were others; the interval is widened for the number of slices (Bonferroni)."""
    if entry.positives is None or plan.about(entry.task).kind != "binary" or not tests:
        return ()
    width = float(special.ndtri(1 - SIGNIFICANCE / (2 * tests)))
    whole = next(method for method in analysis.methods if method.method.name == entry.method).tasks[entry.task].values
    auc, calibration = whole["auc"], whole["calibration"]
    found = []
    if auc is not None:
        here = entry.values["auc"]
        if here + width * auc_error(here, entry.positives, entry.rows - entry.positives) < auc:
            found.append("auc")
    if calibration and entry.values["calibration"] > 0:
        off = abs(math.log(entry.values["calibration"] / calibration))
        # a count of n positives is off by 1/√n
        if off > max(_LEAST_MISCALIBRATED, width / math.sqrt(entry.positives)):
            found.append("calibration")
    return tuple(found)


def _shown(analysis: Analysis) -> str | None:
    return next((entry.method.name for entry in analysis.joint if entry.ne is not None), None)


def _places(details: Mapping[SlicedTask, str]) -> str:
    """Name slices, each with its tasks and their details, in the order given."""
    slices: dict[tuple[str, str], list[str]] = {}
    for entry, detail in details.items():
        slices.setdefault((entry.column, entry.value), []).append(f"{entry.task} ({detail})")
    said = [
        f"{column} {f'is {value}' if value else 'has a rarer value'}: {listed(tasks)}"
        for (column, value), tasks in slices.items()
    ]
    more = [f"and in {counted(len(said) - _MOST_NAMED, 'other slice')}"] if len(said) > _MOST_NAMED else []
    return "; where ".join(said[:_MOST_NAMED]) + "".join(f"; {text}" for text in more)


def _cell(entry: SlicedTask) -> Cell:
    counts = f"{entry.rows:,} rows" + ("" if entry.positives is None else f", {entry.positives:,} positive")
    value = entry.values["ne" if entry.positives is None else "auc"]
    if not entry.judged:
        return Cell(number(value, 3), "few rows", hint=counts)
    details: list[Any] = [counts]
    if entry.positives is not None:
        details.append(f"NE {number(entry.values['ne'], 4)}, calibration {number(entry.values['calibration'], 3)}")
    gain = gain_text(entry.gain, MEASURES["ne"], marked=True)
    return Cell(
        number(value, 3), gain, hint="; ".join(details), tone="warn" if entry.behind else "",
        background=_ORANGE if "auc" in entry.behind else "",
    )  # fmt: skip
