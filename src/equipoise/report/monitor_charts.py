"""The report's charts of the monitor: weights and norms over time, cosines between tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equipoise.comparison.results import Results
from equipoise.report.charts import Chart, Choice, Figure, Panel, axes, line_colour, text
from equipoise.training import Run

__all__ = ["cosine_chart", "monitor_chart"]

_QUANTITIES = {"weight": "Weights of the tasks", "norm": "Norms of the tasks' gradients (PUB: updates)"}
_COSINE_SCALE = [[0, "#B35806"], [0.25, "#F1A340"], [0.5, "#F7F7F7"], [0.75, "#67A9CF"], [1, "#2166AC"]]
_MOST_FRAMES = 20
_WIDE = 20  # from this ratio of largest to smallest value on, a linear axis hides the small ones

Matrix = list[list[float | None]]


def monitor_chart(results: Results) -> Chart | None:
    """Draw each task's weight or gradient norm over the steps, one panel per method and fork."""
    tasks = results.plan.tasks
    sets: dict[str, list[Panel]] = {}
    for quantity, title in _QUANTITIES.items():
        panels = []
        for method in results.plan.methods:
            runs = _ok_runs(results, method.name)
            places = _places(runs, quantity, tasks)
            for place in places:
                series = {task: _mean_reading(runs, f"{place}/{quantity}/{task}") for task in tasks}
                if quantity == "weight" and all(
                    value == 1 for of_task in series.values() for value in of_task.values()
                ):
                    continue  # a fork that combines by element weighs no task
                panels.append(Panel(_title(method.label, place, places), _lines(series)))
        if panels:
            sets[title] = panels
    if not sets:
        return None
    legend = [(task, line_colour(index)["color"]) for index, task in enumerate(tasks)]
    return Chart("monitor", list(sets.values()), [Choice("Show", list(sets))], legend)


def cosine_chart(results: Results) -> Chart | None:
    """Draw cosines between the tasks' gradients (PUB: updates): their mean, and a slider over the steps."""
    tasks = results.plan.tasks
    options: list[str] = []
    panels: list[list[Panel]] = []
    for method in results.plan.methods:
        runs = _ok_runs(results, method.name)
        places = _places(runs, "cosine", [f"{a}/{b}" for a in tasks for b in tasks])
        for place in places:
            series = _cosines(runs, place, tasks)
            steps = _thinned(sorted({step for values in series.values() for step in values}))
            if not steps:
                continue
            mean = _matrix(tasks, {pair: _mean(values.values()) for pair, values in series.items()})
            frames = [_matrix(tasks, {pair: at.get(step) for pair, at in series.items()}) for step in steps]
            reach = _reach([mean, *frames])
            options.append(_title(method.label, place, places))
            panels.append(
                [
                    Panel("Mean over training", _heat_map(tasks, mean, reach)),
                    Panel("Over time (move the slider)", _heat_maps(tasks, steps, frames, reach)),
                ]
            )
    return Chart("cosines", panels, [Choice("Method", options)]) if panels else None


def _ok_runs(results: Results, method: str) -> list[Run]:
    return [run for run in results.of(method) if run.status == "ok"]


def _places(runs: Sequence[Run], quantity: str, names: Sequence[str]) -> list[str]:
    """Return the monitored places: the part before ``/<quantity>/<name>`` of the readings' names."""
    endings = tuple(f"/{quantity}/{name}" for name in names)
    found = {key for run in runs for reading in run.monitor for key in reading if key.endswith(endings)}
    return sorted({key[: key.rindex(f"/{quantity}/")] for key in found})


def _title(label: str, place: str, places: Sequence[str]) -> str:
    """Return the method's name, with the fork's if there are several."""
    return label if len(places) == 1 else f"{label}, {place}"


def _mean_reading(runs: Sequence[Run], key: str) -> dict[int, float]:
    """Return the mean over the seeds by step."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for reading in run.monitor:
            if key in reading and math.isfinite(reading[key]):
                values.setdefault(int(reading["step"]), []).append(reading[key])
    return {step: math.fsum(found) / len(found) for step, found in sorted(values.items())}


def _lines(series: Mapping[str, Mapping[int, float]]) -> Figure:
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "name": text(task), "x": list(values),
            "y": [_short(value) for value in values.values()], "line": {**line_colour(index), "width": 2},
            "hovertemplate": "%{y:.4g} at step %{x:,}<extra>%{fullData.name}</extra>",
        }
        for index, (task, values) in enumerate(series.items())
    ]  # fmt: skip
    layout = axes(height=230, x="Training step")
    layout["showlegend"] = False
    layout["margin"] |= {"l": 44, "r": 8, "t": 8, "b": 40}
    known = [value for values in series.values() for value in values.values()]
    if known and min(known) > 0 and max(known) / min(known) > _WIDE:
        layout["yaxis"] |= {"type": "log", "dtick": "D2" if max(known) / min(known) < 300 else 1}
    else:
        layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout}


def _cosines(runs: Sequence[Run], place: str, tasks: Sequence[str]) -> dict[tuple[str, str], Mapping[int, float]]:
    """Return the cosine by step for each ordered pair of tasks; the monitor may hold one order only."""
    found = {(a, b): _mean_reading(runs, f"{place}/cosine/{a}/{b}") for a in tasks for b in tasks if a != b}
    return {(a, b): values or found[b, a] for (a, b), values in found.items()}


def _matrix(tasks: Sequence[str], cosines: Mapping[tuple[str, str], float | None]) -> Matrix:
    """Return a matrix in the order of the tasks; the diagonal, always 1, stays empty."""
    return [[None if a == b else _short(cosines[a, b]) for b in tasks] for a in tasks]


def _heat_map(tasks: Sequence[str], cosines: Matrix, reach: float) -> Figure:
    names = [text(task) for task in tasks]
    trace = {
        "type": "heatmap", "x": names, "y": names, "z": cosines, "zmin": -reach, "zmax": reach,
        "xgap": 2, "ygap": 2, "hoverongaps": False, "colorscale": _COSINE_SCALE,
        "texttemplate": "%{z:.2f}" if len(tasks) <= 10 else "",
        "colorbar": {"thickness": 10, "outlinewidth": 0, "len": 0.9},
        "hovertemplate": "%{y} and %{x}: %{z:.3f}<extra></extra>",
    }  # fmt: skip
    layout = axes(height=max(360, 130 + 34 * len(tasks)), x="")
    layout["margin"] |= {"l": 20, "t": 8, "b": 20}
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False, "type": "category", "ticks": ""}
    layout["xaxis"] |= {"showgrid": False, "type": "category", "ticks": ""}
    return {"data": [trace], "layout": layout}


def _heat_maps(tasks: Sequence[str], steps: Sequence[int], frames: Sequence[Matrix], reach: float) -> Figure:
    """Draw a heat map with a slider that exchanges its cosines."""
    figure = _heat_map(tasks, frames[0], reach)
    slider = {
        "pad": {"t": 46}, "len": 1, "x": 0, "minorticklen": 0, "ticklen": 0,
        "font": {"color": "rgba(0,0,0,0)"},  # the labels of all steps would run into each other
        "currentvalue": {"prefix": "Training step ", "font": {"color": "#1b2430"}},
        "steps": [
            {"label": f"{step:,}", "method": "restyle", "args": [{"z": [frame]}]}
            for step, frame in zip(steps, frames, strict=True)
        ],
    }  # fmt: skip
    return {"data": figure["data"], "layout": {**figure["layout"], "sliders": [slider]}}


def _thinned(steps: Sequence[int]) -> list[int]:
    if len(steps) <= _MOST_FRAMES:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (_MOST_FRAMES - 1))] for index in range(_MOST_FRAMES)]


def _reach(matrices: Iterable[Matrix]) -> float:
    """Return the range of the colours: symmetric about zero, and no wider than the cosines need."""
    largest = max((abs(cell) for matrix in matrices for row in matrix for cell in row if cell is not None), default=1)
    return min(1.0, max(0.1, math.ceil(10 * largest) / 10))


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return math.fsum(known) / len(known) if known else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
