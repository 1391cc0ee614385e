"""Numbers of the report: means over seeds, paired comparisons and speed, by method and task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from equipoise.comparison.results import EQUAL_WEIGHTS, SINGLE_TASK, PlannedMethod, Results, Throughput
from equipoise.comparison.tuned_rates import Rate, rate_of
from equipoise.report.statistics import (
    PairedComparison,
    delta_m,
    holm,
    interval,
    paired_comparison,
    relative_gain,
)
from equipoise.training import Run

__all__ = [
    "FEW_POSITIVES",
    "MIN_PAIRS",
    "Analysis",
    "Gain",
    "MethodResult",
    "SpeedVerdict",
    "TaskResult",
    "View",
    "analyse",
    "has_natural_view",
]

View = Literal["test", "test_natural", "validation"]
"""Metrics on the test split as sampled, on it at the natural rate, or on the validation split."""

SIGNIFICANCE = 0.05

MIN_PAIRS = 3
"""Paired seeds under which nothing is claimed: an interval of two differences rests on a spread of one number."""

FEW_POSITIVES = 100
"""Test rows of a task's rarer class under which the task ranks no method: a share of n rows is off by 1/√n or more."""

QUIET = (0.9, 1.1)
"""Interval of the speed ratio of two identical learners beyond which the machine was too busy to measure speed."""

_MIN_SPEED_PAIRS = 6  # under which order statistics give no 95 % interval
_SAME_SPEED = (0.95, 1.05)

SpeedVerdict = Literal["faster", "slower", "same", "unclear"]
"""What the measured interval says about a method's speed against that of equal weights."""


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
    def verdict(self) -> Literal["above", "below", "unclear", "untested"]:
        """On which side of zero the 95 % interval lies; untested with fewer than :data:`MIN_PAIRS` paired seeds."""
        return self.over_seeds.verdict if self.over_seeds.pairs >= MIN_PAIRS else "untested"

    @property
    def significant(self) -> bool:
        """True if the 95 % interval excludes zero, with no regard to other comparisons."""
        return self.verdict in {"above", "below"}

    @property
    def firm(self) -> bool:
        """True if it is significant after Holm's adjustment too."""
        return self.significant and self.adjusted_p is not None and self.adjusted_p < SIGNIFICANCE

    @property
    def better(self) -> bool:
        """True if the change is significant and positive."""
        return self.verdict == "above"

    @property
    def worse(self) -> bool:
        """True if the change is significant and negative."""
        return self.verdict == "below"


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
        method: the planned method.
        rates: the rates its runs used, nearly always one.
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
        speed_verdict: faster, slower or neither, by the interval of the ratio.
        peak_memory: bytes; ``None`` where not measured.
    """

    method: PlannedMethod
    rates: tuple[Rate, ...]
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
    speed_verdict: SpeedVerdict
    peak_memory: float | None

    @property
    def is_reference(self) -> bool:
        """True if this is equal weights."""
        return self.method.name == EQUAL_WEIGHTS

    @property
    def is_single_task(self) -> bool:
        """True if this is one model per task, which is no way to train one model."""
        return self.method.name == SINGLE_TASK


@dataclass(frozen=True)
class Analysis:
    """One view on a comparison.

    Attributes:
        view: the metrics of the test split shown, as sampled or at the natural rate.
        methods: in the order of the plan.
        tasks: the tasks that can be scored, in the order of the plan.
        unscored: tasks whose metrics are not defined on this test split (one class only): in no mean.
        few: tasks that can be scored, but have few test rows of their rarer class: task to that number. They are in no
            mean, unless every task is among them.
        busy: whether the machine was too busy to measure speed.
    """

    view: View
    methods: tuple[MethodResult, ...]
    tasks: tuple[str, ...]
    unscored: tuple[str, ...]
    few: Mapping[str, int]
    busy: bool

    @property
    def means_over(self) -> tuple[str, ...]:
        """The tasks that the means over tasks include."""
        return _tasks_of_means(self.tasks, self.few)

    @property
    def ranks(self) -> bool:
        """True if any task has enough test rows of both classes to rank methods by."""
        return len(self.few) < len(self.tasks)

    def method(self, name: str) -> MethodResult | None:
        """Return the method of that name, or None if it was not planned."""
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
    """Return whether any run has metrics weighted back to the natural rate."""
    return any(run.status == "ok" and run.test_natural for run in results.runs)


def analyse(results: Results, view: View = "test") -> Analysis:
    """Return all numbers of the report's tables for one view, from the finished runs."""
    ok = {method.name: _ok_runs(results, method.name) for method in results.plan.methods}
    ended_well = [run for runs in ok.values() for run in runs]
    scored = tuple(
        task
        for task in (results.plan.tasks if ended_well else ())
        if all(math.isfinite(_value(run, view, task, "ne")) for run in ended_well)
    )
    counts = results.plan.label_counts.get("validation" if view == "validation" else "test", {})
    few = {task: counts[task].scarcest for task in scored if task in counts and counts[task].scarcest < FEW_POSITIVES}
    means_over = _tasks_of_means(scored, few)
    equal, alone = ok.get(EQUAL_WEIGHTS, []), ok.get(SINGLE_TASK, [])
    control = results.throughput.get(EQUAL_WEIGHTS)
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
                rates=tuple(sorted({rate_of(run) for run in ended})) or _planned_rate(results, method.name),
                ok=len(runs),
                diverged=len(ended) - len(runs),
                missing=len(results.plan.seeds) - len(ended),
                auc=_mean(_per_seed(runs, view, means_over, "auc")),
                ne=_mean(_per_seed(runs, view, means_over, "ne")),
                ne_gain=_gain(runs, equal, view, means_over, "ne") if against_equal else None,
                auc_gain=_gain(runs, equal, view, means_over, "auc") if against_equal else None,
                delta_m=_delta_m(runs, alone, view, means_over) if against_alone else None,
                tasks=tasks,
                speed=speed,
                speed_verdict=_speed_verdict(speed, control),
                peak_memory=speed.peak_memory if speed and speed.peak_memory else max(memory, default=None),
            )
        )
    unscored = tuple(task for task in results.plan.tasks if task not in scored) if ended_well else ()
    return Analysis(view, tuple(_adjusted(methods, scored)), scored, unscored, few, _is_busy(control))


def _tasks_of_means(scored: Sequence[str], few: Mapping[str, int]) -> tuple[str, ...]:
    enough = tuple(task for task in scored if task not in few)
    return enough or tuple(scored)


def _is_busy(control: Throughput | None) -> bool:
    """Return whether two identical learners measured too differently; False where they were not measured."""
    if control is None or control.low is None or control.high is None:
        return False
    return control.low < QUIET[0] or control.high > QUIET[1]


def _speed_verdict(speed: Throughput | None, control: Throughput | None) -> SpeedVerdict:
    """Return the verdict on speed; a difference must be larger than that between two identical learners.

    On a quiet machine the ratio must lie outside their interval; on a busy one, its whole interval must.
    """
    measured = [entry for entry in (speed, control) if entry and entry.low and entry.high]
    if len(measured) < 2 or min(entry.pairs for entry in measured) < _MIN_SPEED_PAIRS:
        return "unclear"
    (ratio, low, high), (_, least, most) = [(entry.ratio, entry.low or 0, entry.high or 0) for entry in measured]
    busy = _is_busy(control)
    if low > 1 and (low if busy else ratio) > most:
        return "faster"
    if high < 1 and (high if busy else ratio) < least:
        return "slower"
    return "same" if not busy and low >= _SAME_SPEED[0] and high <= _SAME_SPEED[1] else "unclear"


def _ok_runs(results: Results, method: str) -> list[Run]:
    return [run for run in results.of(method) if run.status == "ok"]


def _planned_rate(results: Results, method: str) -> tuple[Rate, ...]:
    planned = results.plan.rate(method)
    return () if planned is None else (planned,)


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
    """Apply Holm's adjustment; a family is one column of the main table, or one table by task."""
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
