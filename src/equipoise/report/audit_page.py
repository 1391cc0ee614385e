"""The page of an audit: advice first, then gains, gradients and tasks, as one HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equipoise.comparison.audit import Audit, read_audit
from equipoise.comparison.results import Results
from equipoise.report.analysis import Gain
from equipoise.report.audit_findings import Conclusion, TaskFinding, Way, conclude
from equipoise.report.cells import PERCENT, Cell, Column, Row, Table, number, percent, signed
from equipoise.report.charts import Chart, Panel, axes, gain_figure, gain_point, line_colour, text
from equipoise.report.phrases import counted
from equipoise.report.statistics import PairedComparison
from equipoise.report.web_page import write_page

__all__ = ["audit_in_words", "write_audit"]

_ADVICE = {"leave": "Leave it", "balance": "Balance", "split": "Split the model", "unclear": "More seeds needed"}


def audit_in_words(folder: Path, /) -> list[str]:
    """Return the conclusion of an audit, headline first.

    Raises:
        FolderError: the folder holds no audit, or a file in it is damaged.
    """
    found = conclude(*read_audit(folder))
    return [found.headline, *found.reasons]


def write_audit(folder: Path, /) -> Path:
    """Write ``audit.html`` into the folder of an audit, whole or not at all, and return its path.

    Raises:
        FolderError: the folder holds no audit, or a file in it is damaged.
    """
    audit, results = read_audit(folder)
    found, plan = conclude(audit, results), results.plan
    content = {
        "title": f"Audit of {plan.dataset}",
        "subtitle": (
            f"{counted(len(plan.tasks), 'task')} ({', '.join(plan.tasks)}), model {plan.model}, "
            f"{counted(len(plan.seeds), 'seed')}; all figures are of the validation rows."
        ),
        "found": found,
        "tiles": _tiles(found),
        "gains": _gain_chart(found.ways),
        "shares": _share_chart(audit),
        "cosines": _cosine_chart(audit, plan.tasks),
        "updates": _update_chart(audit),
        "tasks": _task_table(found.tasks),
        "weights": _weight_table(audit),
        "procedure": _procedure(audit, results),
    }
    return write_page(folder / "audit.html", "audit.html.j2", content)


def _tiles(found: Conclusion) -> list[tuple[str, str, str]]:
    tiles = [("Advice", _ADVICE[found.advice], "by gain in mean validation NE")]
    if drowned := [task.name for task in found.tasks if task.drowned_out]:
        tiles.append(("Drowned out", ", ".join(drowned), "short gradient, and better off otherwise"))
    suffering = [task.name for task in found.tasks if task.suffers]
    tiles.append(("Negative transfer", ", ".join(suffering) or "none", "a model of its own is clearly better"))
    tiles.append(("Adam's update", number(found.update, 2), "mean cosine with the joint gradient"))
    return tiles


def _gain_chart(ways: Sequence[Way]) -> Chart | None:
    shown = sorted((way for way in ways if way.gain.mean is not None), key=lambda way: way.gain.mean or 0.0)
    if not shown:
        return None
    points = [gain_point(way.label, way.gain, Gain(way.gain).verdict) for way in shown]
    return Chart("gains", [[Panel("", gain_figure(points))]])


def _share_chart(audit: Audit) -> Chart:
    layout = axes(height=340, x="Steps", y="Share of all gradient lengths")
    layout["yaxis"] |= {"rangemode": "tozero", "tickformat": ".0%"}
    x = [reading.step for reading in audit.probes]
    data = [
        _line(
            task, place, x, [reading.lengths[task] / (sum(reading.lengths.values()) or 1) for reading in audit.probes]
        )
        for place, task in enumerate(audit.probes[0].lengths)
    ]
    return Chart("shares", [[Panel("", {"data": data, "layout": layout})]])


def _cosine_chart(audit: Audit, tasks: Sequence[str]) -> Chart:
    layout = axes(height=340, x="Steps", y="Cosine of two tasks' gradients")
    layout["yaxis"] |= {"range": [-1, 1], "zeroline": True, "zerolinecolor": "#1b2430"}
    pairs = [(one, other) for one in range(len(tasks)) for other in range(one)]
    mean = {pair: sum(reading.cosines[pair[0]][pair[1]] for reading in audit.probes) for pair in pairs}
    shown = sorted(pairs, key=lambda pair: mean[pair])[:10]  # the most opposed ones
    x = [reading.step for reading in audit.probes]
    data = [
        _line(f"{tasks[other]}, {tasks[one]}", place, x, [reading.cosines[one][other] for reading in audit.probes])
        for place, (one, other) in enumerate(shown)
    ]
    return Chart("cosines", [[Panel("", {"data": data, "layout": layout})]])


def _update_chart(audit: Audit) -> Chart:
    layout = axes(height=340, x="Steps", y="Cosine with Adam's update")
    layout["yaxis"] |= {"zeroline": True, "zerolinecolor": "#1b2430"}
    x = [reading.step for reading in audit.probes]
    data = [
        _line(task, place, x, [reading.helped[task] for reading in audit.probes])
        for place, task in enumerate(audit.probes[0].helped)
    ]
    joint = _line("all, in its own batch", len(data), x, [reading.update for reading in audit.probes])
    return Chart("updates", [[Panel("", {"data": [*data, joint], "layout": layout})]])


def _line(label: str, place: int, x: Sequence[int], y: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines+markers", "name": text(label), "x": list(x), "y": list(y),
        "line": line_colour(place), "hovertemplate": "%{y:.3f} at step %{x}<extra>%{fullData.name}</extra>",
    }  # fmt: skip


def _task_table(tasks: Sequence[TaskFinding]) -> Table:
    columns = [
        Column("Task", numeric=False),
        Column("Share of lengths", "Length of its gradient over the sum of all, mean over the training"),
        Column("Most opposed by", "Mean cosine with the gradient of that task"),
        Column("Along the update", "Mean cosine between Adam's update and its gradient; below 0 it loses"),
        Column("A model of its own", "Gain in validation NE on this task, %"),
        Column("Best joint way", "Gain in validation NE on this task, %"),
    ]
    rows = [
        Row(
            [
                Cell(task.name, "drowned out" if task.drowned_out else "negative transfer" if task.suffers else ""),
                Cell(f"{task.share:.1%}", tone="warn" if task.drowned_out else ""),
                Cell(number(round(task.opposed[0], 2) + 0.0, 2), task.opposed[1]),
                Cell(number(task.helped, 3), tone="warn" if task.helped < 0 else ""),
                _gain_cell(task.alone),
                _gain_cell(task.best[1] if task.best else None, task.best[0] if task.best else ""),
            ]
        )
        for task in tasks
    ]
    return Table(columns, rows)


def _gain_cell(gain: PairedComparison | None, below: str = "") -> Cell:
    if gain is None or gain.mean is None:
        return Cell("–")
    tone = {"above": "better", "below": "worse"}.get(gain.verdict, "")
    between = f"{signed(gain.low, 1)} to {percent(gain.high, 1)}" if gain.low is not None else ""
    small = ", ".join(part for part in (below, between) if part)
    return Cell(percent(gain.mean, 1), small, tone=tone)  # type: ignore[arg-type]


def _weight_table(audit: Audit) -> Table | None:
    if not audit.trials:
        return None
    tasks = list(audit.trials[0].weights)
    ranked = sorted(audit.trials, key=lambda trial: trial.score)[:5]
    columns = [Column("Rank"), *(Column(task) for task in tasks), Column("Mean validation NE")]
    return Table(
        columns,
        [
            Row(
                [
                    Cell(str(place)),
                    *(Cell(number(trial.weights[task], 2)) for task in tasks),
                    Cell(number(trial.score, 4)),
                ]
            )
            for place, trial in enumerate(ranked, start=1)
        ],
    )


def _procedure(audit: Audit, results: Results) -> list[tuple[str, str]]:
    plan = results.plan
    rates = ", ".join(f"{name} {rate:g}" for name, rate in plan.rates.items())
    return [
        (
            "Gradients",
            f"at {counted(len(audit.probes), 'point')} of one training with equal weights, over 16,384 train rows",
        ),
        ("Gains", f"paired by seed over {counted(len(plan.seeds), 'seed')}, 95{PERCENT} intervals by Student's t"),
        (
            "Static weights",
            f"{counted(len(audit.trials), 'trial')} by optuna's TPE sampler, confirmed with other seeds",
        ),
        ("Training", f"{counted(plan.epochs, 'epoch')} of batches of {plan.batch_size:,}"),
        ("Learning rates", f"{rates}{'; chosen by equal weights for all' if audit.rate_tuned else ''}"),
    ]
