"""The chart of calibration: mean label over mean prediction, in bins of the test rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from equipoise.comparison.results import Results
from equipoise.report.analysis import Analysis
from equipoise.report.charts import Chart, Choice, Figure, Panel, axes, line_style, short, text
from equipoise.training import Run

__all__ = ["calibration_chart"]

_WIDE = 30.0  # largest over smallest prediction from which both axes are logarithmic


def calibration_chart(results: Results, analysis: Analysis) -> Chart | None:
    """Return the curves of each method, mean over seeds, for each task; None where the runs hold none."""
    name = "calibration_natural" if analysis.view == "test_natural" else "calibration"
    panels = [[Panel("", _curves(results, analysis, task, name))] for task in analysis.tasks]
    if not any(len(panel.figure["data"]) > 1 for shown in panels for panel in shown):
        return None
    return Chart(f"{name}-{analysis.view}", panels, [Choice("Task", list(analysis.tasks))])


def _curves(results: Results, analysis: Analysis, task: str, name: str) -> Figure:
    data: list[dict[str, Any]] = []
    for method in results.plan.methods:
        runs = [run for run in results.of(method.name) if run.status == "ok"]
        bins = _mean_bins([getattr(run, name).get(task, []) for run in runs], runs)
        if bins:
            data.append({
                "type": "scatter", "mode": "lines+markers", "name": text(method.label),
                "x": [short(part["prediction"]) for part in bins], "y": [short(part["rate"]) for part in bins],
                "customdata": [[short(part["error"]), part["rows"]] for part in bins],
                "hovertemplate": "predicted %{x:.4g}, found %{y:.4g} ± %{customdata[0]:.2g} in %{customdata[1]:,} rows"
                                 "<extra>%{fullData.name}</extra>",
                **line_style(results, method.name),
            })  # fmt: skip
    binary = task not in analysis.regressions
    layout = axes(height=460, x="Mean prediction", y="Share of positives" if binary else "Mean target")
    values = [value for trace in data for axis in "xy" for value in trace[axis] if value is not None]
    if values:
        low, high = min(values), max(values)
        if binary:
            low = min(value for value in values if value > 0)
            if high / low > _WIDE:
                for trace in data:  # a share of 0 has no place on a logarithmic axis
                    trace["y"] = [value or None for value in trace["y"]]
                for axis in ("xaxis", "yaxis"):  # decades only: labels between them overlap
                    layout[axis] |= {"type": "log", "dtick": 1, "exponentformat": "none", "minexponent": 9}
        data.insert(0, {
            "type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "name": "calibrated",
            "line": {"color": "#8a94a3", "width": 1.5, "dash": "dot"}, "hoverinfo": "skip",
        })  # fmt: skip
    return {"data": data, "layout": layout}


def _mean_bins(curves: Sequence[Sequence[dict[str, float]]], runs: Sequence[Run]) -> list[dict[str, float]]:
    """Return the mean of the curves, bin by bin, over those with as many bins as most have."""
    sizes = [len(curve) for curve in curves]
    if not runs or max(sizes) == 0:
        return []
    usual = max(set(sizes), key=lambda size: (sizes.count(size), size))
    alike = [curve for curve in curves if len(curve) == usual]
    return [
        {name: math.fsum(part[name] for part in bins) / len(bins) for name in bins[0]}
        | {"rows": round(math.fsum(part["rows"] for part in bins) / len(bins))}
        for bins in zip(*alike, strict=True)
    ]
