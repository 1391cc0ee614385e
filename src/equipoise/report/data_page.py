"""The page about a data set: labels, features, drift and possible leaks, as one HTML file that opens offline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from equipoise.data import Dataset
from equipoise.data.summary import Summary, TaskSummary, summarise
from equipoise.report.cells import Cell, Column, Row, Table, number
from equipoise.report.charts import Chart, Panel, axes, line_colour, text
from equipoise.report.data_facts import DayFacts, FeatureFacts, Overlap, by_day, features_of, label_overlaps
from equipoise.report.phrases import counted
from equipoise.report.web_page import write_page

__all__ = ["LEAK", "write_data_page"]

LEAK: Final = 0.95
"""A feature that predicts a task with this AUC by itself may leak it."""

_DRIFTED: Final = 0.1
_MOST_FEATURES: Final = 200  # rows of the table of features


def write_data_page(dataset: Dataset, path: Path, /) -> Path:
    """Write the page about a data set, whole or not at all, and return its path."""
    summary, features = summarise(dataset), features_of(dataset)
    overlaps, days = label_overlaps(dataset), by_day(dataset)
    content = {
        "title": dataset.name,
        "subtitle": (
            f"{counted(len(dataset.schema.tasks), 'task')}, "
            f"{counted(len(summary.features), 'feature')}, {len(dataset.train):,} train, "
            f"{len(dataset.validation):,} validation and {len(dataset.test):,} test rows."
        ),
        "findings": [*summary.warnings, *_leaks(features), *_drifts(features), *_nestings(dataset, overlaps)],
        "notes": summary.notes,
        "labels": _label_table(summary),
        "overlaps": _overlap_table(dataset, overlaps),
        "days": _day_chart(days),
        "features": _feature_table(summary, features),
        "left_out": max(0, len(features) - _MOST_FEATURES),
    }
    return write_page(path, "data.html.j2", content)


def _leaks(features: Sequence[FeatureFacts]) -> list[str]:
    return [
        f"{feature.name} predicts {task} almost alone (AUC {found:.3f}): is it known before the outcome?"
        for feature in features
        for task, found in feature.auc.items()
        if max(found, 1 - found) > LEAK
    ]


def _drifts(features: Sequence[FeatureFacts]) -> list[str]:
    return [
        f"{feature.name} differs between train and test rows (total variation distance {feature.drift:.2f})."
        for feature in features
        if feature.drift > _DRIFTED
    ]


def _nestings(dataset: Dataset, overlaps: Sequence[Overlap]) -> list[str]:
    stated = {(task.name, task.after) for task in dataset.schema.tasks}
    return [
        f"All {entry.rows:,} positives of {entry.task} in the train rows have {entry.other} = 1: "
        f"`after: {entry.other}` would learn it on those rows alone."
        for entry in overlaps
        if entry.share == 1 and (entry.task, entry.other) not in stated
        and not any(back.task == entry.other and back.other == entry.task and back.share == 1 for back in overlaps)
    ]  # fmt: skip


def _label_table(summary: Summary) -> Table:
    columns = [
        Column("Task", numeric=False),
        Column("Split", numeric=False),
        Column("Rows"),
        Column("Labelled", "Rows that have the label"),
        Column("Positives", "Labels of 1; of a number, labels that are not 0"),
        Column("Rate or mean", "Mean of the labels there are"),
    ]
    return Table(columns, [Row(_label_cells(entry)) for entry in summary.tasks])


def _label_cells(entry: TaskSummary) -> list[Cell]:
    return [
        Cell(
            entry.task.name,
            "a number" if not entry.task.binary else f"after {entry.task.after}" if entry.task.after else "",
        ),
        Cell(entry.split),
        Cell(f"{entry.rows:,}"),
        Cell(f"{entry.labelled:,}", f"{entry.labelled / max(1, entry.rows):.1%}"),
        Cell(f"{entry.positives:,}", tone="warn" if entry.task.binary and entry.positives < 30 else ""),
        Cell(f"{entry.rate:.3%}" if entry.task.binary and math.isfinite(entry.rate) else number(entry.rate, 3)),
    ]


def _overlap_table(dataset: Dataset, overlaps: Sequence[Overlap]) -> Table | None:
    names = [task.name for task in dataset.schema.tasks if task.binary]
    if len(names) < 2:
        return None
    shares = {(entry.task, entry.other): entry.share for entry in overlaps}
    columns = [Column("Of the rows with …", numeric=False), *(Column(f"{name} = 1") for name in names)]
    rows = []
    for task in names:
        cells = [Cell(f"{task} = 1")]
        for other in names:
            share = 1.0 if other == task else shares[task, other]
            strength = 0.0 if other == task or math.isnan(share) else 0.45 * share
            cells.append(
                Cell(
                    f"{share:.1%}" if math.isfinite(share) else "–",
                    background=f"rgba(0, 114, 178, {strength:.2f})" if strength > 0.01 else "",
                )
            )
        rows.append(Row(cells))
    return Table(columns, rows)


def _feature_table(summary: Summary, features: Sequence[FeatureFacts]) -> Table:
    kinds = {feature.name: feature.kind for feature in summary.features}
    tasks = list(features[0].auc) if features else []
    columns = [
        Column("Feature", numeric=False),
        Column("Values", "Distinct ids in the train rows looked at"),
        Column("Missing or rare", "Train rows whose value is missing or too rare for an id of its own"),
        Column("Drift", "Total variation distance between train and test rows: 0 is the same, 1 is disjoint"),
        *(Column(f"AUC: {task}", "Of this feature alone") for task in tasks),
    ]
    shown = sorted(
        features, key=lambda entry: -max((abs(a - 0.5) for a in entry.auc.values() if math.isfinite(a)), default=0.0)
    )
    rows = []
    for entry in shown[:_MOST_FEATURES]:
        cells = [
            Cell(entry.name, kinds[entry.name]),
            Cell("–" if entry.values is None else f"{entry.values:,}"),
            Cell("–" if math.isnan(entry.unknown) else f"{entry.unknown:.1%}"),
            Cell(number(entry.drift, 3), tone="warn" if entry.drift > _DRIFTED else ""),
        ]
        for task in tasks:
            found = entry.auc[task]
            leaks = math.isfinite(found) and max(found, 1 - found) > LEAK
            strength = 0.9 * abs(found - 0.5) if math.isfinite(found) else 0.0
            cells.append(
                Cell(
                    number(found, 3),
                    tone="warn" if leaks else "",
                    background=f"rgba(0, 114, 178, {strength:.2f})" if strength > 0.01 else "",
                )
            )
        rows.append(Row(cells))
    return Table(columns, rows)


def _says_most(feature: FeatureFacts) -> float:
    """Return the largest distance of its AUCs from 0.5."""
    return max((abs(found - 0.5) for found in feature.auc.values() if math.isfinite(found)), default=0.0)


def _day_chart(days: Sequence[DayFacts]) -> Chart | None:
    if len(days) < 2:
        return None
    x = [entry.day.isoformat() for entry in days]
    rows = axes(height=240, x="Day", y="Rows")
    rows["yaxis"]["rangemode"] = "tozero"
    rows["showlegend"] = False
    bars = {
        "type": "bar", "x": x, "y": [entry.rows for entry in days], "marker": {"color": "#5b6675"},
        "hovertemplate": "%{x}: %{y:,} rows<extra></extra>",
    }  # fmt: skip
    panels = [Panel("Rows per day", {"data": [bars], "layout": rows})]
    for place, task in enumerate(days[0].rates):
        layout = axes(height=240, x="Day")
        layout["yaxis"]["rangemode"] = "tozero"
        layout["showlegend"] = False
        line: dict[str, Any] = {
            "type": "scatter", "mode": "lines+markers", "x": x, "line": line_colour(place),
            "y": [rate if math.isfinite(rate := entry.rates[task]) else None for entry in days],
            "hovertemplate": "%{x}: %{y:.4g}<extra></extra>",
        }  # fmt: skip
        panels.append(Panel(text(f"Mean label: {task}"), {"data": [line], "layout": layout}))
    return Chart("days", [panels])
