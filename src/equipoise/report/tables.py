"""The report's tables as rows of text, the same for HTML, Markdown and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from equipoise.comparison.results import Results, Throughput
from equipoise.comparison.tuned_rates import Rate, rate_of
from equipoise.comparison.tuning import mean_ne, tasks_with_ne
from equipoise.report.analysis import Analysis, Gain, MethodResult, TaskResult
from equipoise.report.statistics import PairedComparison

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Table",
    "data_table",
    "main_table",
    "mark",
    "methods_table",
    "number",
    "p_value",
    "percent",
    "signed",
    "task_table",
    "transfer_table",
    "tuning_table",
]

NONE = "–"
PERCENT = "\N{NO-BREAK SPACE}%"
_BLUE, _ORANGE = "0, 114, 178", "213, 94, 0"  # Okabe-Ito: told apart by colour-blind readers
_NOT_FIRM = 0.35  # what is left of the colour where a change is no longer clear after Holm's adjustment
_FULL_COLOUR = {"ne": 10.0, "auc": 0.05}  # a change of this size gets the strongest background


@dataclass(frozen=True)
class Cell:
    """One value of a table: a text, a smaller second line, an explanation, and how it looks."""

    text: str
    below: str = ""
    hint: str = ""
    tone: Literal["", "best", "better", "worse", "warn"] = ""
    background: str = ""


@dataclass(frozen=True)
class Column:
    """A heading, what it means, and whether its values are numbers (then they are set right)."""

    title: str
    hint: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """The cells of one row; ``reference`` and ``aside`` rows look different."""

    cells: Sequence[Cell]
    kind: Literal["", "reference", "aside"] = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows of one table."""

    columns: Sequence[Column]
    rows: Sequence[Row] = field(default_factory=list)


def number(value: float | None, digits: int) -> str:
    """Format a number with a true minus sign, or a dash for none."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """Format a difference with its sign; one that rounds to zero has none.

    Example:
        >>> signed(-1.234, 2), signed(0.5, 1), signed(-0.001, 2)
        ('−1.23', '+0.5', '0.00')
    """
    text = number(value, digits)
    if value is None or not math.isfinite(value) or float(f"{value:.{digits}f}") == 0:
        return text.lstrip("−")
    return text if value < 0 else f"+{text}"


def percent(value: float | None, digits: int) -> str:
    """Format a relative change in per cent with its sign; the space before "%" does not break.

    Example:
        >>> percent(2.5, 1)
        '+2.5\\xa0%'
    """
    return f"{signed(value, digits)}{PERCENT}"


def p_value(p: float | None) -> str:
    """Format a p value with three digits at most.

    Example:
        >>> p_value(0.0304), p_value(0.00002), p_value(None)
        ('0.030', '< 0.001', '–')
    """
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def mark(gain: Gain | None) -> str:
    """Return an arrow for a clear change: filled after Holm's adjustment, hollow without, nothing if unclear."""
    if gain is None or not gain.significant:
        return ""
    if gain.firm:
        return "▲" if gain.better else "▼"
    return "△" if gain.better else "▽"


def _between(found: PairedComparison, digits: int, unit: str = "") -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{signed(found.low, digits)} to {signed(found.high, digits)}{unit}"


def _memory(amount: float | None) -> str:
    if amount is None:
        return NONE
    return f"{amount / 1e9:.2f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


def _seeds(entry: MethodResult) -> Cell:
    planned = entry.ok + entry.diverged + entry.missing
    notes = []
    if entry.diverged:
        notes.append(f"{entry.diverged} diverged")
    if entry.missing:
        notes.append(f"{entry.missing} not run yet")
    return Cell(f"{entry.ok} of {planned}", ", ".join(notes), tone="warn" if entry.diverged else "")


def _kind(entry: MethodResult) -> Literal["", "reference", "aside"]:
    return "reference" if entry.is_reference else "aside" if entry.is_single_task else ""


def _name(entry: MethodResult) -> Cell:
    below = "the reference" if entry.is_reference else "one model per task" if entry.is_single_task else ""
    return Cell(entry.method.label, below, hint=entry.method.summary)


def _overall_gain(entry: MethodResult, *, marked: bool) -> Cell:
    gain = entry.ne_gain
    if entry.is_reference:
        return Cell("reference")
    if gain is None or gain.mean is None:
        return Cell(NONE, hint="No seed has ended well both here and with equal weights.")
    below = _between(gain.over_seeds, 2) or f"{gain.over_seeds.pairs} paired seed: no interval"
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
    return Cell(" / ".join(f"{rate.lr:g}" for rate in entry.rates) or NONE, below)


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
    """Build the main table: methods, best mean NE first, with quality, gain, interval, test, cost and seeds."""
    columns = [
        Column("Method", numeric=False),
        Column("Learning rate", "The rate this method was trained with. Below: the decay of its embedding tables."),
        Column("Mean AUC", "Mean over tasks, then over seeds. Higher is better; 0.5 is guessing."),
        Column("Mean NE", "Normalized entropy, mean over tasks and seeds. Lower is better; 1 is no skill."),
        Column(
            "NE gain over equal weights",
            "100 × (NE of equal weights − NE) / NE of equal weights, seed by seed. Below: 95 % interval.",
        ),
        Column("p", "Two-sided paired t-test of the gain over seeds. Below: adjusted for several methods (Holm)."),
        Column("Δm", "Mean relative change of AUC and NE over all tasks against one model per task; + is better."),
        Column(
            "Speed",
            "Training examples per second over those of equal weights (QPS ratio). Below: 95 % interval.",
        ),
        Column("Peak memory", "Most memory in use during training."),
        Column("Seeds", "Runs that ended well, of those planned."),
    ]
    best = next((entry for entry in analysis.joint if entry.ne is not None), None)
    best_auc = max((entry.auc for entry in analysis.joint if entry.auc is not None), default=None)
    rows = []
    for entry in analysis.ranked:
        gain = entry.ne_gain
        p = gain.over_seeds.p if gain else None
        delta = entry.delta_m
        has_delta = delta is not None and delta.mean is not None
        rows.append(
            Row(
                [
                    _name(entry),
                    _rates(entry),
                    Cell(number(entry.auc, 4), tone="best" if entry.auc == best_auc and best_auc else ""),
                    Cell(number(entry.ne, 4), tone="best" if entry is best else ""),
                    _overall_gain(entry, marked=analysis.ranks),
                    Cell(p_value(p), f"Holm {p_value(gain.adjusted_p)}" if gain and p is not None else ""),
                    Cell(percent(delta.mean, 2), _between(delta, 2)) if delta and has_delta else Cell(NONE),
                    _speed(entry),
                    Cell(_memory(entry.peak_memory)),
                    _seeds(entry),
                ],
                _kind(entry),
            )
        )
    return Table(columns, rows)


def task_table(analysis: Analysis, results: Results, metric: Literal["ne", "auc", "calibration"]) -> Table:
    """Build a table of methods by tasks: the value, and below it the gain over equal weights with its mark."""
    columns = [Column("Method", numeric=False), *_task_columns(analysis)]
    best: dict[str, float] = {}
    if metric != "calibration":
        choose = min if metric == "ne" else max
        for task in analysis.tasks:
            if task in analysis.few:
                continue
            values = [_value(entry.tasks[task], metric) for entry in analysis.joint]
            known = [value for value in values if value is not None]
            if known:
                best[task] = choose(known)
    rows = []
    for entry in analysis.ranked:
        cells = [_name(entry)]
        for task in analysis.tasks:
            found = entry.tasks[task]
            value = _value(found, metric)
            gain = {"ne": found.ne_gain, "auc": found.auc_gain, "calibration": None}[metric]
            ranks = task not in analysis.few
            is_best = value is not None and value == best.get(task) and not entry.is_single_task
            cells.append(
                Cell(
                    number(value, 4 if metric != "calibration" else 3),
                    _gain_text(gain, metric, marked=ranks),
                    hint=_gain_hint(gain, metric),
                    tone="best" if is_best else "",
                    background=_background(gain, metric) if ranks else "",
                )
            )
        rows.append(Row(cells, _kind(entry)))
    if metric == "ne" and results.plan.best_ne:
        reachable = [Cell(number(results.plan.best_ne.get(task), 4)) for task in analysis.tasks]
        rows.append(Row([Cell("Best reachable", "from the true probabilities"), *reachable], "aside"))
    return Table(columns, rows)


def transfer_table(analysis: Analysis, metric: Literal["ne", "auc"]) -> Table:
    """Build a table of joint methods against training each task alone: gain per task, + is better."""
    columns = [Column("Method", numeric=False), *_task_columns(analysis)]
    joint = sorted(analysis.joint, key=lambda entry: not entry.is_reference)
    rows = []
    for entry in joint:
        cells = [_name(entry)]
        for task in analysis.tasks:
            found = entry.tasks[task]
            gain = found.ne_transfer if metric == "ne" else found.auc_transfer
            cells.append(
                Cell(
                    _gain_text(gain, metric, marked=task not in analysis.few) or NONE,
                    _between(gain.over_seeds, 1 if metric == "ne" else 4) if gain else "",
                    hint=_gain_hint(gain, metric),
                    background=_background(gain, metric) if task not in analysis.few else "",
                )
            )
        rows.append(Row(cells, _kind(entry)))
    return Table(columns, rows)


def tuning_table(results: Results) -> Table:
    """Validation mean NE of every method at every rate and table decay that was tried; the chosen one is marked."""
    rates = sorted({run.lr for run in results.tuning})
    decays = sorted({run.table_decay for run in results.tuning})
    tasks = tasks_with_ne(results.tuning)
    columns = [Column("Method", numeric=False), *(Column(f"{lr:g}") for lr in rates), Column("Chosen")]
    if len(decays) > 1:
        columns.insert(1, Column("Table decay", "Decoupled weight decay of the embedding tables, times the rate."))
    rows = []
    for method in results.plan.methods:
        chosen = results.plan.rate(method.name)
        own = [run for run in results.tuning if run.method == method.name]
        for decay in sorted({run.table_decay for run in own}):
            cells = [Cell(method.label)]
            if len(decays) > 1:
                cells.append(Cell(f"{decay:g}"))
            for lr in rates:
                mean = mean_ne([run for run in own if rate_of(run) == Rate(lr, decay)], tasks)
                text = "diverged" if mean is not None and math.isinf(mean) else number(mean, 4)
                cells.append(Cell(text, tone="best" if chosen == Rate(lr, decay) else ""))
            is_chosen = chosen is not None and chosen.table_decay == decay
            edge = "edge of the grid" if is_chosen and results.at_edge(method.name) else ""
            cells.append(Cell(f"{chosen.lr:g}" if chosen and is_chosen else "", edge))
            rows.append(Row(cells))
    return Table(columns, rows)


def data_table(results: Results) -> Table:
    """Build a table of tasks: shares of positive and of known labels, and the best reachable NE."""
    plan = results.plan
    columns = [
        Column("Task", numeric=False),
        Column("Positive", "Share of positive labels among the training rows that have one."),
        Column("Labelled", "Share of training rows that have this label."),
    ]
    counts = plan.label_counts.get("test", {})
    if counts:
        columns.append(Column("Positive test rows", "How many of the test rows are positive."))
    if plan.best_ne:
        columns.append(Column("Best reachable NE", "NE of the true probabilities, on the test rows."))
    rows = []
    for task in plan.tasks:
        labels = plan.label_rates.get(task)
        cells = [
            Cell(task),
            Cell(_percent(labels.rate if labels else None)),
            Cell(_percent(labels.labelled if labels else None)),
        ]
        if counts:
            cells.append(Cell(f"{counts[task].positives:,}" if task in counts else NONE))
        if plan.best_ne:
            cells.append(Cell(number(plan.best_ne.get(task), 4)))
        rows.append(Row(cells))
    return Table(columns, rows)


def methods_table(results: Results) -> Table:
    """Build a table of methods: what each does, and its options."""
    columns = [
        Column("Method", numeric=False),
        Column("Acts on", numeric=False),
        Column("What it does", numeric=False),
        Column("Built as", numeric=False),
    ]
    rows = [
        Row(
            [
                Cell(method.label, method.name),
                Cell(method.family),
                Cell(method.summary),
                Cell(method.settings),
            ]
        )
        for method in results.plan.methods
    ]
    return Table(columns, rows)


def _value(found: TaskResult, metric: Literal["ne", "auc", "calibration"]) -> float | None:
    return {"ne": found.ne, "auc": found.auc, "calibration": found.calibration}[metric]


def _task_columns(analysis: Analysis) -> list[Column]:
    """Return a column for each task, marked if the task has too few rows of one class."""
    return [
        Column(f"{task} (too few)", f"Only {analysis.few[task]} test rows of its rarer class: mostly chance.")
        if task in analysis.few
        else Column(task)
        for task in analysis.tasks
    ]


def _gain_text(gain: Gain | None, metric: str, *, marked: bool) -> str:
    if gain is None or gain.mean is None:
        return ""
    size = percent(gain.mean, 1) if metric == "ne" else signed(gain.mean, 4)
    return f"{mark(gain)} {size}".strip() if marked else size


def _gain_hint(gain: Gain | None, metric: str) -> str:
    if gain is None or gain.mean is None:
        return ""
    between = _between(gain.over_seeds, 2 if metric == "ne" else 4, PERCENT if metric == "ne" else "")
    if not between:
        return f"{gain.over_seeds.pairs} paired seeds: no interval, no test"
    return (
        f"95 % interval {between}; p {p_value(gain.over_seeds.p)}, adjusted {p_value(gain.adjusted_p)}; "
        f"{gain.over_seeds.pairs} paired seeds"
    )


def _background(gain: Gain | None, metric: str) -> str:
    """Return a background colour as strong as a clear change is large; none if the change is not clear."""
    if gain is None or gain.mean is None or not gain.significant:
        return ""
    strength = 0.08 + 0.4 * math.sqrt(min(1.0, abs(gain.mean) / _FULL_COLOUR[metric]))
    if not gain.firm:
        strength *= _NOT_FIRM
    return f"rgba({_BLUE if gain.mean > 0 else _ORANGE}, {strength:.2f})"


def _percent(share: float | None) -> str:
    if share is None:
        return NONE
    return f"{100 * share:.{2 if share < 0.1 else 1}f}{PERCENT}"
