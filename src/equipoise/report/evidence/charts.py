"""The evidence page's pictures: gains, critical differences, cost against quality, and tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.comparison.results import EQUAL_WEIGHTS
from equipoise.report.cells import PERCENT, signed
from equipoise.report.charts import (
    NAMES,
    Chart,
    Choice,
    Figure,
    Panel,
    axes,
    axis_name,
    gain_figure,
    gain_point,
    line_colour,
    short,
    text,
)
from equipoise.report.evidence.overall import FOCUS, MethodOverall, Overall
from equipoise.report.evidence.sensitivity import Sensitivity, gains_by_baseline_trials, sensitivities
from equipoise.report.evidence.suite import Setting, Suite
from equipoise.report.statistics import Interval

__all__ = ["cost_chart", "gains_chart", "rank_chart", "trials_chart", "tuning_gain_chart"]

_MOST_NAMED = 15  # methods in one picture: more names would cover each other
_INK, _MUTED, _ACCENT = "#1b2430", "#8a94a3", "#0072B2"


def gains_chart(suite: Suite) -> Chart | None:
    """Gain of each method in one setting: a bar over seeds, a thin line over seeds and users; None without gains."""
    shown = [setting for setting in suite.settings if setting.has_gains]
    if not shown:
        return None
    panels = [[Panel("", _gains_figure(setting))] for setting in shown]
    return Chart("evidence-gains", panels, [Choice("Setting", [setting.title for setting in shown])])


def _gains_figure(setting: Setting) -> Figure:
    points: list[Figure] = []
    means: dict[str, float] = {}
    for entry in reversed(setting.analysis.ranked):
        gain = entry.ne_gain
        if gain is None or gain.mean is None:
            continue
        means[entry.method.label] = gain.mean
        symbol = "diamond" if entry.is_single_task or entry.is_static else "circle"
        symbol += "-open" if gain.significant and not gain.firm else ""
        point = gain_point(entry.method.label, gain.over_seeds, gain.verdict, symbol)
        if over_users := setting.gains_over_users.get(entry.method.name):
            points.append(_line_over_users(point, over_users))
        points.append(point)
    figure = gain_figure(points)
    lowest, best, far_below = _without_far_below(means)
    layout = figure["layout"]
    layout["height"] = 92 + 34 * len(means)
    if far_below:
        margin = 0.25 * (best - lowest)
        layout["xaxis"]["range"] = [short(min(0.0, lowest) - margin), short(max(0.0, best) + margin)]
        layout["annotations"] = [_note(f"left of the picture: {far_below}")]
    return figure


def _line_over_users(point: Figure, found: Interval) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "x": [short(found.low), short(found.high)], "y": point["y"] * 2,
        "line": {"color": point["marker"]["color"], "width": 1}, "opacity": 0.6,
        "hovertemplate": "over seeds and users: %{x:+.2f} %<extra></extra>",
    }  # fmt: skip


def rank_chart(overall: Overall) -> Chart | None:
    """Critical-difference diagram: average ranks, with a bar beside methods that the test does not tell apart."""
    ranks = overall.ranks
    if ranks is None or ranks.critical_difference is None:
        return None
    labels = {method.name: axis_name(method.label) for method in overall.methods}
    order = list(ranks.average)
    colours = [_INK if name == EQUAL_WEIGHTS else _ACCENT if name == FOCUS else _MUTED for name in order]
    data: list[Figure] = [
        {
            "type": "scatter", "mode": "markers", "x": [short(rank) for rank in ranks.average.values()],
            "y": [labels[name] for name in order], "marker": {"size": 11, "color": colours},
            "hovertemplate": "%{y}: average rank %{x:.2f}<extra></extra>",
        }
    ]  # fmt: skip
    for at, clique in enumerate(ranks.cliques):
        data.append({
            "type": "scatter", "mode": "lines", "x": [at + 0.5] * 2, "y": [labels[clique[0]], labels[clique[-1]]],
            "xaxis": "x2", "line": {"color": _INK, "width": 5}, "opacity": 0.75, "hoverinfo": "skip",
        })  # fmt: skip
    layout = axes(height=130 + 34 * len(order), x="Average rank, 1 is best")
    lowest = short(min(ranks.average.values()))
    layout["showlegend"] = False
    layout["xaxis"]["domain"] = [0, 0.82]
    layout["xaxis2"] = {
        "domain": [0.85, 1], "range": [0, max(len(ranks.cliques), 4)], "visible": False, "fixedrange": True,
    }  # fmt: skip
    layout["yaxis"] |= {
        **NAMES, "autorange": "reversed", "showgrid": True,
        "categoryorder": "array", "categoryarray": [labels[name] for name in order],
    }  # fmt: skip
    layout["margin"] = {**layout["margin"], "t": 44}
    end = (lowest or 0.0) + ranks.critical_difference
    rightmost = max(end, *ranks.average.values())
    layout["xaxis"]["range"] = [0.8, short(rightmost + 0.04 * (rightmost - 1))]
    layout["shapes"] = [
        {
            "type": "line", "xref": "x", "yref": "paper", "x0": lowest, "x1": short(end), "y0": 1, "y1": 1,
            "line": {"color": _INK, "width": 3},
        }
    ]  # fmt: skip
    layout["annotations"] = [
        {
            "xref": "x", "yref": "paper", "x": short(end), "y": 1, "yshift": 4, "xanchor": "right", "yanchor": "bottom",
            "showarrow": False,
            "text": f"critical difference {ranks.critical_difference:.2f}", "font": {"size": 12},
        }
    ]  # fmt: skip
    return Chart("evidence-ranks", [[Panel("", {"data": data, "layout": layout})]])


def cost_chart(overall: Overall) -> Chart | None:
    """Mean gain over speed: the front is joined by a line, and its methods are named."""
    shown = [
        method
        for method in overall.methods
        if method.is_joint and method.speed is not None and method.mean_gain is not None
    ]
    if len(shown) < 2:
        return None
    on_front = [method for name in overall.front if (method := overall.method(name))]
    others = [method for method in shown if method.name not in overall.front]
    data = [
        _cost_points(
            others, {"color": _MUTED, "size": 9}, mode="markers+text" if len(shown) <= _MOST_NAMED else "markers"
        ),
        _cost_points(on_front, {"color": _ACCENT, "size": 12}, mode="lines+markers+text"),
    ]
    # The front falls to the right: names on either side of it, in turn, do not cover each other.
    data[1]["textposition"] = [("top right", "bottom left")[place % 2] for place in range(len(on_front))][::-1]
    layout = axes(height=460, x="Speed: QPS over that of equal weights", y="Mean NE gain over equal weights")
    layout["showlegend"] = False
    layout["yaxis"] |= {"ticksuffix": " %", "zeroline": True, "zerolinecolor": _INK}
    lowest, best, far_below = _without_far_below({method.label: method.mean_gain or 0.0 for method in shown})
    margin = 0.08 * (best - lowest) or 0.1
    layout["yaxis"]["range"] = [short(lowest - margin), short(best + 1.5 * margin)]
    layout["annotations"] = [_note(f"below the picture: {far_below}")] if far_below else []
    speeds = [method.speed for method in shown if method.speed is not None]
    width = max(speeds) - min(speeds) or 0.1
    layout["xaxis"]["range"] = [short(min(speeds) - 0.12 * width), short(max(speeds) + 0.25 * width)]
    return Chart("evidence-cost", [[Panel("", {"data": data, "layout": layout})]])


def _without_far_below(gains: Mapping[str, float]) -> tuple[float, float, str]:
    """Return the lowest gain to show, the highest, and in words the gains that are far below all others."""
    ordered = sorted(gains.values())
    best, middle = ordered[-1], ordered[len(ordered) // 2]
    lowest = max(ordered[0], middle - 4 * (best - middle)) if best > middle else ordered[0]
    below = [f"{text(label)} ({signed(gain, 1)}{PERCENT})" for label, gain in gains.items() if gain < lowest]
    return min(gain for gain in ordered if gain >= lowest), best, ", ".join(below)


def _note(words: str) -> Figure:
    """Return a note in the lower left corner of a picture."""
    return {
        "xref": "paper", "yref": "paper", "x": 0, "y": 0, "xanchor": "left", "yanchor": "bottom", "showarrow": False,
        "text": words, "font": {"size": 11, "color": _MUTED},
    }  # fmt: skip


def _cost_points(methods: Sequence[MethodOverall], marker: dict[str, Any], *, mode: str) -> Figure:
    return {
        "type": "scatter", "mode": mode, "x": [short(method.speed) for method in methods],
        "y": [short(method.mean_gain) for method in methods], "text": [text(method.label) for method in methods],
        "textposition": "top center", "textfont": {"size": 11}, "cliponaxis": False, "marker": marker,
        "line": {"color": _ACCENT, "width": 1.5, "dash": "dot"},
        "hovertemplate": "%{text}: %{y:+.2f} % at × %{x:.2f}<extra></extra>",
    }  # fmt: skip


def trials_chart(suite: Suite) -> Chart | None:
    """Validation error of every trial, a line of points per method, in one setting; None without tuning."""
    found = {setting.title: sensitivities(setting) for setting in suite.settings}
    shown = {title: methods for title, methods in found.items() if methods}
    if not shown:
        return None
    panels = [[Panel("", _trials_figure(methods))] for methods in shown.values()]
    return Chart("evidence-trials", panels, [Choice("Setting", list(shown))])


def _trials_figure(methods: Sequence[Sensitivity]) -> Figure:
    by_median = sorted(methods, key=lambda method: -method.median)
    data: list[Figure] = []
    for method in by_median:
        colour = _INK if method.name == EQUAL_WEIGHTS else _ACCENT if method.name == FOCUS else "#5b6675"
        data += [
            {
                "type": "scatter", "mode": "markers", "x": [short(error) for error in method.errors],
                "y": [axis_name(method.label)] * len(method.errors),
                "marker": {"size": 8, "color": colour, "opacity": 0.45},
                "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
            },
            {
                "type": "scatter", "mode": "markers", "x": [short(method.median)], "y": [axis_name(method.label)],
                "marker": {"size": 16, "symbol": "line-ns", "line": {"width": 3, "color": colour}},
                "hovertemplate": "%{y}: median %{x:.4f}<extra></extra>",
            },
        ]  # fmt: skip
    layout = axes(height=100 + 34 * len(methods), x="Validation mean NE (lower is better)")
    layout["showlegend"] = False
    layout["yaxis"] |= {**NAMES, "showgrid": True}
    errors = sorted(error for method in methods for error in method.errors)
    best, middle = errors[0], errors[len(errors) // 2]
    end = min(errors[-1], best + 6 * (middle - best)) if middle > best else errors[-1]
    margin = 0.04 * (end - best) or 0.01
    layout["xaxis"]["range"] = [short(best - margin), short(end + margin)]
    baseline = next((method.best for method in methods if method.name == EQUAL_WEIGHTS), None)
    if baseline is not None:
        layout["shapes"] = [{
            "type": "line", "xref": "x", "yref": "paper", "x0": short(baseline), "x1": short(baseline),
            "y0": 0, "y1": 1, "line": {"color": _INK, "width": 1.5, "dash": "dot"},
        }]  # fmt: skip
    return {"data": data, "layout": layout}


def tuning_gain_chart(suite: Suite) -> Chart | None:
    """Gain of each method's best trial over the best of n trials of equal weights, in one setting."""
    panels, titles = [], []
    for setting in suite.settings:
        methods = sensitivities(setting)
        baseline = next((method for method in methods if method.name == EQUAL_WEIGHTS), None)
        if baseline is None or len(baseline.errors) < 2 or len(methods) < 2:
            continue
        titles.append(setting.title)
        panels.append([Panel("", _tuning_gains(methods, baseline))])
    return Chart("evidence-tuning", panels, [Choice("Setting", titles)]) if panels else None


def _tuning_gains(methods: Sequence[Sensitivity], baseline: Sensitivity) -> Figure:
    trials = list(range(1, len(baseline.errors) + 1))
    others = [method for method in methods if method.name != EQUAL_WEIGHTS]
    by_gain = sorted(others, key=lambda method: method.best)
    data: list[Figure] = [
        {
            "type": "scatter", "mode": "lines", "name": text(method.label), "x": trials,
            "y": [short(gain) for gain in gains_by_baseline_trials(method, baseline)],
            "line": {**line_colour(at), "width": 3 if method.name == FOCUS else 1.5},
            "hovertemplate": "%{y:+.2f} % over the best of %{x}<extra>%{fullData.name}</extra>",
        }
        for at, method in enumerate(by_gain)
    ]  # fmt: skip
    layout = axes(height=480, x="Trials of equal weights", y="Gain in validation mean NE")
    layout["xaxis"] |= {"type": "log", "tickvals": [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= trials[-1]]}
    layout["yaxis"] |= {"ticksuffix": " %", "zeroline": True, "zerolinecolor": _INK}
    return {"data": data, "layout": layout}
