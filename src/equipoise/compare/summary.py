"""What the terminal shows at the end: tables narrow enough for sixty columns."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rich.table import Table

from equipoise.compare.records import read_runs
from equipoise.compare.statistics import PairedComparison, relative_gain
from equipoise.training import METHODS, Run

__all__ = ["method_table", "run_table", "summary_table"]

_REFERENCE = "equal"


def method_table() -> Table:
    """Every method with its summary and options."""
    table = Table(title="Methods", title_justify="left", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("what it does")
    for method in METHODS.values():
        options = ", ".join(method.known_options())
        table.add_row(method.name, method.summary + (f"\n[dim]options: {options}[/]" if options else ""))
    table.caption = "Options are given as in multibalance:beta=0.1,direction=gram."
    return table


def run_table(run: Run) -> Table:
    """One run's test metrics by task."""
    title = f"{run.method}, seed {run.seed}, rate {run.lr:g}: test split"
    if run.status == "diverged":
        title = f"{run.method}, seed {run.seed}, rate {run.lr:g}: diverged at step {run.steps}"
    table = Table("task", title=title, title_justify="left")
    for name in ("AUC", "NE", "log loss", "calibration"):
        table.add_column(name, justify="right")
    for task, metrics in run.test.items():
        table.add_row(task, *(_number(metrics[name]) for name in ("auc", "ne", "log_loss", "calibration")))
    return table


def summary_table(folder: Path) -> Table:
    """A comparison's methods with mean AUC, mean NE, NE gain over equal weights and relative throughput."""
    plan = json.loads((folder / "plan.json").read_text())
    throughput = json.loads((folder / "throughput.json").read_text())
    seeds = set(plan["seeds"])
    runs = [run for run in read_runs(folder / "runs.jsonl") if run.seed in seeds]
    means = {entry["name"]: _mean_ne(runs, entry["name"]) for entry in plan["methods"]}
    title = f"{plan['dataset']}, {plan['model']}: test split, mean over tasks and {len(seeds)} seed(s)"
    table = Table("method", title=title, title_justify="left")
    for name in ("AUC", "NE", "NE gain % [95 %]", "QPS"):
        table.add_column(name, justify="right")
    for name, ne in means.items():
        gain = relative_gain(ne, means.get(_REFERENCE, {}), higher_is_better=False)
        aucs = [_mean(run, "auc") for run in runs if run.method == name and run.status == "ok"]
        diverged = sum(run.method == name and run.status == "diverged" for run in runs)
        table.add_row(
            name + (f" ({diverged} diverged)" if diverged else ""),
            _number(_average(aucs)), _number(_average(list(ne.values()))),
            "" if name == _REFERENCE else _gain(gain), f"×{throughput[name]['ratio']:.2f}",
        )  # fmt: skip
    return table


def _mean_ne(runs: list[Run], method: str) -> dict[int, float]:
    return {run.seed: _mean(run, "ne") for run in runs if run.method == method and run.status == "ok"}


def _mean(run: Run, metric: str) -> float:
    return _average([metrics[metric] for metrics in run.test.values()])


def _average(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _gain(gain: PairedComparison) -> str:
    if gain.mean is None:
        return "–"
    ends = "" if gain.low is None or gain.high is None else f" [{gain.low:+.2f}, {gain.high:+.2f}]"
    return f"{gain.mean:+.2f}{ends}"
