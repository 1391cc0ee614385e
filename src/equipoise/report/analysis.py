"""From runs to numbers: per method and task the means over seeds, the paired comparisons and the speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from equipoise.compare.results import EQUAL_WEIGHTS, SINGLE_TASK, PlannedMethod, Results, Throughput
from equipoise.report.statistics import (
    PairedComparison,
    delta_m,
    holm,
    interval,
    paired_comparison,
    relative_gain,
)
from equipoise.training import Run

__all__ = ["Analysis", "Gain", "MethodResult", "TaskResult", "View", "analyse", "has_natural_view"]

View = Literal["test", "test_natural"]
"""Metrics on the test split as sampled, or weighted back to the natural rate."""

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Gain:
    """A paired comparison, + is better, with its p value adjusted for the number of tests in its table."""

    over_seeds: PairedComparison
    adjusted_p: float | None = None

    @property
    def mean(self) -> float | None:
        """The mean over the paired seeds."""
        return self.over_seeds.mean

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval excludes zero, with no regard to other comparisons."""
        return self.over_seeds.verdict in {"above", "below"}

    @property
    def firm(self) -> bool:
        """Whether it is significant after Holm's adjustment too."""
        return self.adjusted_p is not None and self.adjusted_p < SIGNIFICANCE

    @property
    def better(self) -> bool:
        """Significant, and upwards."""
        return self.over_seeds.verdict == "above"

    @property
    def worse(self) -> bool:
        """Significant, and downwards."""
        return self.over_seeds.verdict == "below"


@dataclass(frozen=True)
class TaskResult:
    """One method on one task; gains are ``None`` where there is nothing to compare with.

    Attributes:
        auc: mean over the seeds that ended well; ``None`` without one, or where the metric is not defined.
        ne: normalized entropy, the same way.
        calibration: mean prediction over mean label, the same way.
        ne_gain: NE gain over equal weights in per cent.
        auc_gain: AUC minus that of equal weights.
        ne_transfer: NE gain over training alone in per cent: below zero is negative transfer.
        auc_transfer: AUC minus that of training alone.
    """

    auc: float | None
    ne: float | None
    calibration: float | None
    ne_gain: Gain | None
    auc_gain: Gain | None
    ne_transfer: Gain | None
    auc_transfer: Gain | None


@dataclass(frozen=True)
class MethodResult:
    """One method over all tasks.

    Attributes:
        method: as planned.
        rates: the learning rates its runs used, nearly always one.
        ok: seeds that ended well.
        diverged: seeds that did not.
        missing: seeds that have not run yet.
        auc: mean over tasks, then over seeds.
        ne: the same of NE.
        ne_gain: gain in mean NE over equal weights in per cent; ``None`` for equal weights itself.
        auc_gain: mean AUC minus that of equal weights.
        delta_m: against single-task training in per cent.
        tasks: per task that can be scored.
        speed: QPS ratio and, where measured, memory.
        peak_memory: bytes; ``None`` where not measured.
    """

    method: PlannedMethod
    rates: tuple[float, ...]
    ok: int
    diverged: int
    missing: int
    auc: float | None
    ne: float | None
    ne_gain: Gain | None
    auc_gain: Gain | None
    delta_m: PairedComparison | None
    tasks: Mapping[str, TaskResult]
    speed: Throughput | None
    peak_memory: float | None

    @property
    def is_reference(self) -> bool:
        """Whether this is equal weights."""
        return self.method.name == EQUAL_WEIGHTS

    @property
    def is_single_task(self) -> bool:
        """Whether this is one model per task, which is no way to train one model."""
        return self.method.name == SINGLE_TASK


@dataclass(frozen=True)
class Analysis:
    """One view on a comparison.

    Attributes:
        view: which metrics of the test split.
        methods: in the order of the plan.
        tasks: the tasks that can be scored, in the order of the plan.
        unscored: tasks whose metrics are not defined on this test split (one class only): in no mean.
    """

    view: View
    methods: tuple[MethodResult, ...]
    tasks: tuple[str, ...]
    unscored: tuple[str, ...]

    def method(self, name: str) -> MethodResult | None:
        """The method of that name, if it was planned."""
        return next((entry for entry in self.methods if entry.method.name == name), None)

    @property
    def ranked(self) -> list[MethodResult]:
        """By mean NE, best first; methods without one at the end."""
        return sorted(self.methods, key=lambda entry: math.inf if entry.ne is None else entry.ne)

    @property
    def joint(self) -> list[MethodResult]:
        """The ways to train one model on all tasks, by mean NE, best first."""
        return [entry for entry in self.ranked if not entry.is_single_task]


def has_natural_view(results: Results) -> bool:
    """Whether any run has metrics weighted back to the natural rate."""
    return any(run.status == "ok" and run.test_natural for run in results.runs)


def analyse(results: Results, view: View = "test") -> Analysis:
    """Every number of the report's tables for one view, from the runs that have ended."""
    ok = {method.name: _ok_runs(results, method.name) for method in results.plan.methods}
    scored = tuple(
        task
        for task in results.plan.tasks
        if any(math.isfinite(_value(run, view, task, "ne")) for runs in ok.values() for run in runs)
    )
    equal, alone = ok.get(EQUAL_WEIGHTS, []), ok.get(SINGLE_TASK, [])
    methods = []
    for method in results.plan.methods:
        ended = results.of(method.name)
        runs = ok[method.name]
        against_equal = bool(equal) and method.name != EQUAL_WEIGHTS
        against_alone = bool(alone) and method.name != SINGLE_TASK
        tasks = {
            task: TaskResult(
                auc=_mean(_per_seed(runs, view, [task], "auc")),
                ne=_mean(_per_seed(runs, view, [task], "ne")),
                calibration=_mean(_per_seed(runs, view, [task], "calibration")),
                ne_gain=_gain(runs, equal, view, [task], "ne") if against_equal else None,
                auc_gain=_gain(runs, equal, view, [task], "auc") if against_equal else None,
                ne_transfer=_gain(runs, alone, view, [task], "ne") if against_alone else None,
                auc_transfer=_gain(runs, alone, view, [task], "auc") if against_alone else None,
            )
            for task in scored
        }
        speed = results.throughput.get(method.name)
        memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
        methods.append(
            MethodResult(
                method=method,
                rates=tuple(sorted({run.lr for run in ended})) or _planned_rate(results, method.name),
                ok=len(runs),
                diverged=len(ended) - len(runs),
                missing=len(results.plan.seeds) - len(ended),
                auc=_mean(_per_seed(runs, view, scored, "auc")),
                ne=_mean(_per_seed(runs, view, scored, "ne")),
                ne_gain=_gain(runs, equal, view, scored, "ne") if against_equal else None,
                auc_gain=_gain(runs, equal, view, scored, "auc") if against_equal else None,
                delta_m=_delta_m(runs, alone, view, scored) if against_alone else None,
                tasks=tasks,
                speed=speed,
                peak_memory=speed.peak_memory if speed and speed.peak_memory else max(memory, default=None),
            )
        )
    unscored = tuple(task for task in results.plan.tasks if task not in scored) if any(ok.values()) else ()
    return Analysis(view, tuple(_adjusted(methods, scored)), scored, unscored)


def _ok_runs(results: Results, method: str) -> list[Run]:
    return [run for run in results.of(method) if run.status == "ok"]


def _planned_rate(results: Results, method: str) -> tuple[float, ...]:
    return (results.plan.rates[method],) if method in results.plan.rates else ()


def _value(run: Run, view: View, task: str, metric: str) -> float:
    metrics: Mapping[str, Mapping[str, float]] = getattr(run, view)
    return metrics.get(task, {}).get(metric, math.nan)


def _per_seed(runs: Sequence[Run], view: View, tasks: Sequence[str], metric: str) -> dict[int, float]:
    """Seed to the mean over ``tasks``; a seed that lacks one of them is left out."""
    values = {
        run.seed: math.fsum(_value(run, view, task, metric) for task in tasks) / len(tasks) for run in runs if tasks
    }
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _mean(values: Mapping[int, float]) -> float | None:
    return math.fsum(values.values()) / len(values) if values else None


def _gain(
    runs: Sequence[Run],
    reference: Sequence[Run],
    view: View,
    tasks: Sequence[str],
    metric: Literal["auc", "ne"],
) -> Gain:
    here, there = _per_seed(runs, view, tasks, metric), _per_seed(reference, view, tasks, metric)
    if metric == "ne":
        return Gain(relative_gain(here, there, higher_is_better=False))
    return Gain(paired_comparison(here, there))


def _delta_m(runs: Sequence[Run], alone: Sequence[Run], view: View, tasks: Sequence[str]) -> PairedComparison:
    def metrics(run: Run) -> dict[str, dict[str, float]]:
        return {task: {metric: _value(run, view, task, metric) for metric in ("auc", "ne")} for task in tasks}

    if not tasks:
        return interval([])
    return delta_m({run.seed: metrics(run) for run in runs}, {run.seed: metrics(run) for run in alone})


def _adjusted(methods: Sequence[MethodResult], tasks: Sequence[str]) -> list[MethodResult]:
    """Holm's adjustment; a family is one column of the main table, or one table by task."""
    cells = [entry.tasks[task] for entry in methods for task in tasks]
    adjusted_cells = iter(
        [
            replace(cell, ne_gain=ne_gain, auc_gain=auc_gain, ne_transfer=ne_transfer, auc_transfer=auc_transfer)
            for cell, ne_gain, auc_gain, ne_transfer, auc_transfer in zip(
                cells,
                _holm([cell.ne_gain for cell in cells]),
                _holm([cell.auc_gain for cell in cells]),
                _holm([cell.ne_transfer for cell in cells]),
                _holm([cell.auc_transfer for cell in cells]),
                strict=True,
            )
        ]
    )
    return [
        replace(entry, ne_gain=ne_gain, auc_gain=auc_gain, tasks={task: next(adjusted_cells) for task in tasks})
        for entry, ne_gain, auc_gain in zip(
            methods,
            _holm([entry.ne_gain for entry in methods]),
            _holm([entry.auc_gain for entry in methods]),
            strict=True,
        )
    ]


def _holm(gains: Sequence[Gain | None]) -> list[Gain | None]:
    adjusted = holm([gain.over_seeds.p if gain is not None else None for gain in gains])
    return [gain if gain is None else replace(gain, adjusted_p=p) for gain, p in zip(gains, adjusted, strict=True)]
