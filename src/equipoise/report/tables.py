"""The report's tables of methods, tasks and gains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from equipoise.comparison.results import Throughput
from equipoise.report.analysis import Analysis, Gain, MethodResult
from equipoise.report.cells import (
    NONE,
    PERCENT,
    Cell,
    Column,
    Row,
    Table,
    between,
    in_unit,
    memory_text,
    number,
    p_value,
    percent,
    signed,
)
from equipoise.report.measures import MEASURES, Measure

__all__ = [
    "gain_text",
    "ground_colour",
    "main_table",
    "mark",
    "name_cell",
    "regression_table",
    "row_kind",
    "task_table",
    "transfer_table",
    "values_table",
]

_BLUE, _ORANGE = "0, 114, 178", "213, 94, 0"  # Okabe-Ito: told apart by colour-blind readers
_NOT_FIRM = 0.35  # what is left of the colour where a change is no longer clear after Holm's adjustment


_SHORT = 16  # characters of an option that stand in a cell; a longer one is its hint


def mark(gain: Gain | None) -> str:
    """Return an arrow for a clear change: filled after Holm's adjustment, hollow without, nothing if unclear."""
    if gain is None or not gain.significant:
        return ""
    if gain.firm:
        return "▲" if gain.better else "▼"
    return "△" if gain.better else "▽"


def _seeds(entry: MethodResult) -> Cell:
    planned = entry.ok + entry.diverged + entry.missing
    notes = []
    if entry.diverged:
        notes.append(f"{entry.diverged} diverged")
    if entry.missing:
        notes.append(f"{entry.missing} not run yet")
    return Cell(f"{entry.ok} of {planned}", ", ".join(notes), tone="warn" if entry.diverged else "")


def row_kind(entry: MethodResult) -> Literal["", "reference", "aside"]:
    """Return how the row of a method looks: equal weights and single-task training are not like the others."""
    return "reference" if entry.is_reference else "aside" if entry.is_single_task else ""


def name_cell(entry: MethodResult) -> Cell:
    """Return the first cell of a method's row."""
    below = "the reference" if entry.is_reference else "one model per task" if entry.is_single_task else ""
    return Cell(entry.method.label, below, hint=entry.method.summary)


def _overall_gain(entry: MethodResult, *, marked: bool) -> Cell:
    gain = entry.ne_gain
    if entry.is_reference:
        return Cell("reference")
    if gain is None or gain.mean is None:
        return Cell(NONE, hint="No seed has been run both here and with equal weights.")
    below = between(gain.over_seeds, 2) or f"{gain.over_seeds.pairs} paired seed: no interval"
    if gain.over_seeds.pairs > 1 and gain.over_seeds.low is None:
        below = "the same in every seed: no test"
    return Cell(
        f"{mark(gain) if marked else ''} {percent(gain.mean, 2)}".strip(),
        below,
        hint=f"{gain.over_seeds.pairs} paired seeds; {gain.over_seeds.unpaired} left out.",
        tone="better" if gain.better else "worse" if gain.worse else "",
    )


def _between_ratios(speed: Throughput) -> str:
    return f"{speed.low:.3f} to {speed.high:.3f}" if speed.low and speed.high else ""


def _rates(entry: MethodResult) -> Cell:
    decays = [f"{rate.table_decay:g}" for rate in entry.rates]
    below = f"table decay {' / '.join(decays)}" if any(rate.table_decay for rate in entry.rates) else ""
    options = " / ".join(dict.fromkeys(rate.options for rate in entry.rates if rate.options))
    if len(options) <= _SHORT:  # a list of weights would push the last columns out of the window
        below = f"{below}{', ' if below and options else ''}{options}"
    return Cell(" / ".join(f"{rate.lr:g}" for rate in entry.rates) or NONE, below, options)


def _speed(entry: MethodResult) -> Cell:
    """Format the speed ratio where its interval is conclusive, else the interval alone."""
    speed = entry.speed
    if speed is None:
        return Cell(NONE)
    if entry.is_reference:
        return Cell("reference", _between_ratios(speed), "Two identical learners of equal weights, measured in turn.")
    interval = _between_ratios(speed)
    hint = f"{speed.pairs} pairs of blocks of steps, this method and equal weights in turn"
    if entry.speed_verdict == "unclear":
        return Cell("not clear", interval, hint)
    return Cell(f"× {speed.ratio:.3f}", interval, hint)


def main_table(analysis: Analysis) -> Table:
    """Build the main table: methods, best mean error first, with quality, gain, interval, test, cost and seeds."""
    error = analysis.error
    meaning = "Normalized entropy" if error == "NE" else "Normalized squared error: squared error over variance"
    quality = {
        "auc": Column("Mean AUC", "Mean over binary tasks, then over seeds. Higher is better; 0.5 is guessing."),
        "gauc": Column("Mean GAUC", "AUC within each group, such as a user: mean over tasks and seeds."),
        "r2": Column("Mean R²", "Mean over regressions and seeds. Higher is better; 0 is predicting the mean."),
    }
    shown = [name for name in quality if any(getattr(entry, name) is not None for entry in analysis.methods)]
    shown = shown or ["auc"]
    columns = [
        Column("Method", numeric=False),
        Column("Learning rate", "The rate this method was trained with. Below: the decay of its embedding tables."),
        *(quality[name] for name in shown),
        Column(f"Mean {error}", f"{meaning}, mean over tasks and seeds. Lower is better; 1 is no skill."),
        Column(
            f"{error} gain over equal weights",
            f"100 × (its {error} with equal weights − {error}) / the former, seed by seed. Below: 95 % interval.",
        ),
        Column("p", "Two-sided paired t-test of the gain over seeds. Below: adjusted for several methods (Holm)."),
        Column("Δm", "Mean relative change of AUC and NE (RMSE and MAE) against one model per task; + is better."),
        Column(
            "Speed",
            "Training examples per second over those of equal weights (QPS ratio). Below: 95 % interval.",
        ),
        Column("Peak memory", "Most memory in use during training."),
        Column("Seeds", "Runs that ended well, of those planned."),
    ]  # fmt: skip
    best = next((entry for entry in analysis.joint if entry.ne is not None), None)
    rows = []
    for entry in analysis.ranked:
        gain = entry.ne_gain
        p = gain.over_seeds.p if gain else None
        delta = entry.delta_m
        has_delta = delta is not None and delta.mean is not None
        rows.append(
            Row(
                [
                    name_cell(entry),
                    _rates(entry),
                    *(_highest(entry, analysis, name) for name in shown),
                    Cell(number(entry.ne, 4), tone="best" if entry is best else ""),
                    _overall_gain(entry, marked=analysis.ranks),
                    Cell(p_value(p), f"Holm {p_value(gain.adjusted_p)}" if gain and p is not None else ""),
                    Cell(percent(delta.mean, 2), between(delta, 2)) if delta and has_delta else Cell(NONE),
                    _speed(entry),
                    Cell(memory_text(entry.peak_memory)),
                    _seeds(entry),
                ],
                row_kind(entry),
            )
        )
    return Table(columns, rows)


def _highest(entry: MethodResult, analysis: Analysis, name: str) -> Cell:
    """Return a mean of which higher is better, bold where it is the highest of the joint methods."""
    value: float | None = getattr(entry, name)
    highest = max((found for other in analysis.joint if (found := getattr(other, name)) is not None), default=None)
    return Cell(number(value, 4), tone="best" if value is not None and value == highest else "")


def task_table(
    analysis: Analysis, measure: Measure, tasks: Sequence[str], *, reachable: Mapping[str, float] | None = None
) -> Table:
    """Build a table of methods by tasks: the value, and below it the gain over equal weights with its mark.

    Args:
        reachable: the best NE that can be reached, for a last row.
    """
    cells = {task: _task_cells(analysis, task, measure) for task in tasks}
    rows = [
        Row([name_cell(entry), *(cells[task][at] for task in tasks)], row_kind(entry))
        for at, entry in enumerate(analysis.ranked)
    ]
    if reachable:
        best_cells = [Cell(number(reachable.get(task), 4)) for task in tasks]
        rows.append(Row([Cell("Best reachable", "from the true probabilities"), *best_cells], "aside"))
    return Table([Column("Method", numeric=False), *_task_columns(analysis, tasks)], rows)


def regression_table(analysis: Analysis) -> Table:
    """Build a table of methods by regressions: RMSE, MAE and R² of each, as in :func:`task_table`."""
    measures = [MEASURES[name] for name in ("rmse", "mae", "r2")]
    pairs = [(task, measure) for task in analysis.regressions for measure in measures]
    cells = [_task_cells(analysis, *pair) for pair in pairs]
    columns = [
        replace(column, title=f"{column.title}: {measure.label}")
        for (task, measure) in pairs
        for column in _task_columns(analysis, [task])
    ]
    rows = [
        Row([name_cell(entry), *(column[at] for column in cells)], row_kind(entry))
        for at, entry in enumerate(analysis.ranked)
    ]
    return Table([Column("Method", numeric=False), *columns], rows)


def _task_cells(analysis: Analysis, task: str, measure: Measure) -> list[Cell]:
    """Return the cells of one column, a method each in the order of ``analysis.ranked``; the best joint one is bold."""
    ranks = task not in analysis.few
    known = [value for entry in analysis.joint if (value := entry.tasks[task].values[measure.name]) is not None]
    best = (max(known) if measure.higher_is_better else min(known)) if known and ranks else None
    cells = []
    for entry in analysis.ranked:
        value, gain = entry.tasks[task].values[measure.name], entry.tasks[task].gains.get(measure.name)
        cells.append(
            Cell(
                in_unit(value) if measure.digits is None else number(value, measure.digits),
                gain_text(gain, measure, marked=ranks),
                hint=_gain_hint(gain, measure),
                tone="best" if value is not None and value == best and not entry.is_single_task else "",
                background=ground_colour(gain, measure) if ranks else "",
            )
        )
    return cells


def values_table(analysis: Analysis, metric: str, tasks: Sequence[str], *, digits: int) -> Table:
    """Build a table of methods by tasks: means of a metric over seeds, such as ``calibration`` or ``log_loss``."""
    rows = [
        Row(
            [name_cell(entry), *(Cell(number(entry.tasks[task].values[metric], digits)) for task in tasks)],
            row_kind(entry),
        )
        for entry in analysis.ranked
    ]
    return Table([Column("Method", numeric=False), *_task_columns(analysis, tasks)], rows)


def transfer_table(analysis: Analysis, measure: Measure, tasks: Sequence[str]) -> Table:
    """Build a table of joint methods against training each task alone: gain per task, + is better."""
    joint = sorted(analysis.joint, key=lambda entry: not entry.is_reference)
    rows = []
    for entry in joint:
        cells = [name_cell(entry)]
        for task in tasks:
            gain = entry.tasks[task].transfer.get(measure.name)
            cells.append(
                Cell(
                    gain_text(gain, measure, marked=task not in analysis.few) or NONE,
                    between(gain.over_seeds, measure.digits_of_gain) if gain else "",
                    hint=_gain_hint(gain, measure),
                    background=ground_colour(gain, measure) if task not in analysis.few else "",
                )
            )
        rows.append(Row(cells, row_kind(entry)))
    return Table([Column("Method", numeric=False), *_task_columns(analysis, tasks)], rows)


def _task_columns(analysis: Analysis, tasks: Sequence[str]) -> list[Column]:
    """Return a column for each task, marked if the task has too few rows of one class."""
    return [
        Column(f"{task} (too few)", f"Only {analysis.few[task]} test rows of its rarer class: mostly chance.")
        if task in analysis.few
        else Column(task)
        for task in tasks
    ]


def gain_text(gain: Gain | None, measure: Measure, *, marked: bool) -> str:
    """Format a change with its mark: in per cent or as a difference; nothing where there is none."""
    if gain is None or gain.mean is None:
        return ""
    digits = measure.digits_of_gain
    size = percent(gain.mean, digits) if measure.relative else signed(gain.mean, digits)
    return f"{mark(gain)} {size}".strip() if marked else size


def _gain_hint(gain: Gain | None, measure: Measure) -> str:
    if gain is None or gain.mean is None:
        return ""
    interval = between(gain.over_seeds, 2 if measure.relative else 4, PERCENT if measure.relative else "")
    if not interval:
        return f"{gain.over_seeds.pairs} paired seeds: no interval, no test"
    return (
        f"95 % interval {interval}; p {p_value(gain.over_seeds.p)}, adjusted {p_value(gain.adjusted_p)}; "
        f"{gain.over_seeds.pairs} paired seeds"
    )


def ground_colour(gain: Gain | None, measure: Measure) -> str:
    """Return a background colour as strong as a clear change is large; none if the change is not clear."""
    if gain is None or gain.mean is None or not gain.significant:
        return ""
    strength = 0.08 + 0.4 * math.sqrt(min(1.0, abs(gain.mean) / measure.full_colour))
    if not gain.firm:
        strength *= _NOT_FIRM
    return f"rgba({_BLUE if gain.mean > 0 else _ORANGE}, {strength:.2f})"
