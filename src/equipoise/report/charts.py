"""The report's charts of results as plain plotly.js figures, grouped by what a reader can choose."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from types import MappingProxyType
from typing import Any, Final, Literal

from equipoise.comparison.results import EQUAL_WEIGHTS, SINGLE_TASK, Results
from equipoise.comparison.tuned_rates import rate_of
from equipoise.comparison.tuning import mean_ne, tasks_with_ne
from equipoise.report.analysis import Analysis, MethodResult
from equipoise.report.measures import MEASURES, Measure
from equipoise.report.statistics import PairedComparison
from equipoise.training import Run

__all__ = [
    "NAMES",
    "Chart",
    "Choice",
    "Figure",
    "Panel",
    "axes",
    "axis_name",
    "curve_chart",
    "gain_chart",
    "gain_figure",
    "gain_point",
    "line_colour",
    "line_style",
    "short",
    "tuning_chart",
]

Figure = dict[str, Any]
"""``{"data": [...], "layout": {...}}`` as plotly.js takes it."""

ALL_TASKS = "Mean over tasks"
_MEASURES = {
    "binary": (MEASURES["ne"], MEASURES["auc"]),
    "regression": (replace(MEASURES["ne"], label="NSE"), MEASURES["rmse"]),
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_INK, _MUTED, _RULE = "#1b2430", "#5b6675", "#e3e7ec"
_BETTER, _WORSE = "#0072B2", "#D55E00"
# Okabe-Ito and Paul Tol's muted palette without their yellows, which vanish on white
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#AA3377", "#56B4E9", "#E69F00",
    "#882255", "#44AA99", "#999933", "#332288", "#CC6677",
)  # fmt: skip
_NAME_WIDTH = 22  # letters of a name on one line: a phone has room for little more beside the picture
NAMES: Final[Mapping[str, Any]] = MappingProxyType(
    {"type": "category", "ticks": "outside", "ticklen": 8, "tickcolor": "rgba(0,0,0,0)"}
)
"""Axis of methods' names, with a gap between the names and the picture."""
_MOST_TICKS = 12  # rates named one by one on an axis
_DASHES = ("solid", "dash", "dot", "dashdot")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "pentagon")


@dataclass(frozen=True)
class Panel:
    """One figure with its heading."""

    title: str
    figure: Figure


@dataclass(frozen=True)
class Choice:
    """A list to choose from above a chart."""

    label: str
    options: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """Panels that a reader sees together, one set for each combination of choices.

    Attributes:
        name: unique in the report.
        panels: for every combination of options, in the order of ``itertools.product``, the panels to show.
        choices: none, or the lists to choose from; the first option of each is shown first.
        legend: names with their colours, where the panels share one legend.
    """

    name: str
    panels: Sequence[Sequence[Panel]]
    choices: Sequence[Choice] = ()
    legend: Sequence[tuple[str, str]] = field(default=())


def gain_chart(analysis: Analysis) -> Chart | None:
    """NE gain over equal weights per method, with 95 % intervals; None where there is nothing to compare."""
    data = [_point_of_method(entry) for entry in reversed(analysis.ranked) if entry.ne_gain is not None]
    data = [trace for trace in data if trace["x"] != [None]]
    if not data:
        return None
    return Chart(f"gain-{analysis.view}", [[Panel("", gain_figure(data))]])


def curve_chart(results: Results, kind: Literal["binary", "regression"] = "binary") -> Chart | None:
    """Validation metrics over examples seen, mean over seeds, for each task of a kind and for their mean.

    NE and AUC of binary tasks; NSE and RMSE of regressions, whose RMSE has no mean over tasks. None without a value.
    """
    tasks = [ALL_TASKS, *(task for task in results.plan.tasks if results.plan.about(task).kind == kind)]
    measures = _MEASURES[kind]
    panels = [[Panel("", _curves(results, task, tasks[1:], measure))] for task, measure in product(tasks, measures)]
    if not any(panel.figure["data"] for shown in panels for panel in shown):
        return None
    labels = [measure.label for measure in measures]
    return Chart(f"curves-{kind}", panels, [Choice("Task", tasks), Choice("Measure", labels)])


def tuning_chart(results: Results) -> Chart | None:
    """Mean validation NE over the grid of learning rates per method; a large marker is the chosen rate.

    Each rate is shown with the table decay that suits it best.
    """
    rates = sorted({run.lr for run in results.tuning})
    tasks = tasks_with_ne(results.tuning)
    data = []
    for method in results.plan.methods:
        best: dict[float, tuple[float, float]] = {}  # rate -> mean NE, table decay
        for tried in {rate_of(run) for run in results.tuning if run.method == method.name}:
            mean = mean_ne([r for r in results.tuning if (r.method, rate_of(r)) == (method.name, tried)], tasks)
            if mean is not None and math.isfinite(mean):
                best[tried.lr] = min(best.get(tried.lr, (math.inf, 0.0)), (mean, tried.table_decay))
        if best:
            style = line_style(results, method.name)
            chosen = results.plan.rates.get(method.name)
            tried_rates = sorted(best)
            style["marker"]["size"] = [14 if lr == chosen else 6 for lr in tried_rates]
            style["customdata"] = [best[lr][1] for lr in tried_rates]
            hover = "validation NE %{y:.4f} at rate %{x}, table decay %{customdata:g}<extra>%{fullData.name}</extra>"
            data.append(_line(method.label, tried_rates, [best[lr][0] for lr in tried_rates], hover, style))
    if not data:
        return None
    layout = axes(height=440, x="Learning rate (log scale)", y="Validation mean NE (lower is better)")
    layout["xaxis"] |= {"type": "log"}
    if len(rates) <= _MOST_TICKS:
        layout["xaxis"] |= {"tickvals": rates, "ticktext": [f"{lr:g}" for lr in rates]}
    layout["yaxis"]["range"] = _without_outliers(data, lower_is_better=True)
    return Chart("tuning", [[Panel("", {"data": data, "layout": layout})]])


def axes(*, height: int, x: str, y: str = "") -> dict[str, Any]:
    """Return the layout that all charts share: quiet rules, dark text, room for long labels, the legend below."""
    rule: dict[str, Any] = {"gridcolor": _RULE, "zeroline": False, "linecolor": _RULE, "automargin": True}
    title = {"font": {"size": 13, "color": _MUTED}, "standoff": 10}
    return {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "font": {"family": _FONT, "size": 13, "color": _INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {**rule, "title": {"text": x, **title}},
        "yaxis": {**rule, "title": {"text": y, **title}},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0, "font": {"size": 12}},
        "hoverlabel": {"font": {"size": 12}},
    }  # fmt: skip


def line_colour(index: int) -> dict[str, Any]:
    """Colour and dash of the n-th line, told apart by colour-blind readers too."""
    return {"color": _COLOURS[index % len(_COLOURS)], "dash": _DASHES[index // len(_COLOURS) % len(_DASHES)]}


def text(label: str) -> str:
    """Escape a name for plotly.js, which takes angle brackets for markup."""
    return html.escape(label, quote=False)


def axis_name(label: str) -> str:
    """Return a method's name for an axis, a long one on two lines or more."""
    return "<br>".join(text(line) for line in textwrap.wrap(label, _NAME_WIDTH, break_on_hyphens=False))


def _point_of_method(entry: MethodResult) -> dict[str, Any]:
    found = entry.ne_gain.over_seeds if entry.ne_gain else None
    verdict = entry.ne_gain.verdict if entry.ne_gain else "untested"
    symbol = "diamond" if entry.is_single_task else "circle"
    if verdict in {"above", "below"} and entry.ne_gain and not entry.ne_gain.firm:
        symbol += "-open"
    return gain_point(entry.method.label, found, verdict, symbol)


def gain_figure(points: Sequence[Figure]) -> Figure:
    """Return the figure of gains, each of :func:`gain_point`, from the lowest line up."""
    layout = axes(height=92 + 34 * len(points), x="←  worse      better  →")
    layout["showlegend"] = False
    layout["xaxis"] |= {
        "rangemode": "tozero",
        "zeroline": True,
        "zerolinecolor": _INK,
        "zerolinewidth": 1.5,
        "ticksuffix": " %",
    }
    layout["yaxis"] |= {**NAMES, "showgrid": False}
    return {"data": list(points), "layout": layout}


def gain_point(label: str, gain: PairedComparison | None, verdict: str, symbol: str = "circle") -> Figure:
    """Return a gain in per cent with its interval, coloured by its verdict; no point where there is no mean."""
    colour = {"above": _BETTER, "below": _WORSE}.get(verdict, _MUTED)
    mean = gain.mean if gain else None
    trace: Figure = {
        "type": "scatter", "mode": "markers", "x": [short(mean)], "y": [axis_name(label)],
        "marker": {"size": 11, "color": colour, "symbol": symbol, "line": {"color": colour, "width": 2}},
        "hovertemplate": "%{y}: %{x:+.2f} %<extra></extra>",
    }  # fmt: skip
    if gain and mean is not None and gain.low is not None and gain.high is not None:
        trace["error_x"] = {
            "type": "data", "symmetric": False, "array": [short(gain.high - mean)],
            "arrayminus": [short(mean - gain.low)], "thickness": 2, "width": 5, "color": colour,
        }  # fmt: skip
    return trace


def _curves(results: Results, task: str, all_tasks: Sequence[str], measure: Measure) -> Figure:
    metric = measure.name
    data = []
    tasks = _tasks_on_every_point(results, all_tasks, metric) if task == ALL_TASKS else [task]
    if metric == "rmse" and len(tasks) > 1:
        tasks = []
    for method in results.plan.methods:
        runs = [run for run in results.of(method.name) if run.status == "ok"]
        examples, values = _mean_curve(runs, tasks, metric)
        if examples:
            hover = f"{measure.label} %{{y:.4g}} at %{{x:,}} examples<extra>%{{fullData.name}}</extra>"
            data.append(_line(method.label, examples, values, hover, line_style(results, method.name)))
    better = "higher" if measure.higher_is_better else "lower"
    layout = axes(height=480, x="Training examples seen", y=f"Validation {measure.label} ({better} is better)")
    layout["xaxis"]["rangemode"] = "tozero"
    layout["yaxis"]["range"] = _without_outliers(data, lower_is_better=not measure.higher_is_better)
    return {"data": data, "layout": layout}


def _tasks_on_every_point(results: Results, tasks: Sequence[str], metric: str) -> list[str]:
    """Return the tasks with a value at all points of all runs, so that a mean does not jump where a task comes in."""
    points = [point["validation"] for run in results.runs if run.status == "ok" for point in run.curve]
    return [task for task in tasks if all(math.isfinite(point.get(task, {}).get(metric, math.nan)) for point in points)]


def _mean_curve(runs: Sequence[Run], tasks: Sequence[str], metric: str) -> tuple[list[int], list[float | None]]:
    """Return the mean curve over the seeds, at the points that all of them have."""
    points: dict[int, list[float]] = {}
    for run in runs:
        for point in run.curve:
            values = [point["validation"].get(task, {}).get(metric, math.nan) for task in tasks]
            mean = _mean(values)
            if mean is not None:
                points.setdefault(point["examples"], []).append(mean)
    complete = sorted(examples for examples, values in points.items() if len(values) == len(runs))
    return complete, [_mean(points[examples]) for examples in complete]


def _line(label: str, x: Sequence[float], y: Sequence[float | None], hover: str, style: Figure) -> Figure:
    return {
        "type": "scatter", "mode": "lines+markers", "name": text(label),
        "x": x, "y": [short(value) for value in y], "hovertemplate": hover, **style,
    }  # fmt: skip


def line_style(results: Results, method: str) -> dict[str, Any]:
    """Return a method's line style, the same in all charts; references are black or grey."""
    if method == EQUAL_WEIGHTS:
        return {"line": {"color": _INK, "width": 3}, "marker": {"size": 6, "symbol": "circle"}}
    if method == SINGLE_TASK:
        return {
            "line": {"color": "#8a94a3", "width": 2, "dash": "dash"},
            "marker": {"size": 6, "symbol": "diamond"},
        }
    others = [entry.name for entry in results.plan.methods if entry.name not in {EQUAL_WEIGHTS, SINGLE_TASK}]
    index = others.index(method)
    marker = {"size": 6, "symbol": _MARKERS[index % len(_MARKERS)]}
    return {"line": {**line_colour(index), "width": 2}, "marker": marker}


def _without_outliers(data: Sequence[Figure], *, lower_is_better: bool) -> list[float] | None:
    """Return an axis range that cuts off the first, far points of the curves."""
    values = sorted(value for trace in data for value in trace["y"] if value is not None)
    if not values:
        return None
    if not lower_is_better:
        values = [-value for value in reversed(values)]
    best, worst, middle = values[0], values[-1], values[len(values) // 2]
    end = min(worst, best + 3 * (middle - best)) if middle > best else worst
    margin = 0.04 * (end - best) or 0.01
    span = [best - margin, end + margin]
    return [_rounded(value) for value in (span if lower_is_better else [-span[1], -span[0]])]


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None


def short(value: float | None) -> float | None:
    """Round to five digits, more than a chart shows, to keep the report small."""
    return None if value is None else _rounded(value)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
