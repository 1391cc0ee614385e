"""Numbers of the report: means over seeds, paired comparisons and speed, by method and task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from equipoise.comparison.results import (
    EQUAL_WEIGHTS,
    SINGLE_TASK,
    STATIC_WEIGHTS,
    PlannedMethod,
    PlannedRuns,
    PlannedTask,
    Results,
    Throughput,
)
from equipoise.comparison.tuned_rates import Rate, rate_of
from equipoise.report.diverged import with_diverged_counted
from equipoise.report.measures import MEASURES, Measure, error_name, measures_of
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
    "QUIET",
    "Analysis",
    "Gain",
    "MethodResult",
    "SpeedVerdict",
    "TaskResult",
    "View",
    "analyse",
    "gain_between",
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
    """One method on one task; the keys are names of metrics.

    Attributes:
        values: means over the seeds, ``log_loss`` and ``calibration`` of binary tasks among them; ``None`` without a
            run, or where the metric is not defined.
        gains: over equal weights, + is better, in per cent or as a difference (:class:`Measure`); empty for equal
            weights itself, or where there is none.
        transfer: the same over training alone: below zero is negative transfer.
    """

    values: Mapping[str, float | None]
    gains: Mapping[str, Gain]
    transfer: Mapping[str, Gain]


@dataclass(frozen=True)
class MethodResult:
    """One method over all tasks.

    Attributes:
        method: the planned method.
        rates: the rates its runs used, nearly always one.
        ok: seeds that ended well.
        diverged: seeds that did not.
        missing: seeds that have not run yet.
        auc: mean over the binary tasks in :attr:`Analysis.means_over`, then over seeds; ``None`` without one.
        gauc: the same of grouped AUC.
        log_loss: the same of log loss.
        miscalibration: the same of ``|calibration - 1|``, without the runs that diverged.
        r2: the same of R², over regressions with enough rows.
        ne: mean normalized error over :attr:`Analysis.means_over`, then over seeds.
        ne_gain: gain in it over equal weights in per cent; ``None`` for equal weights itself.
        delta_m: against single-task training in per cent, over tasks of both kinds.
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
    gauc: float | None
    log_loss: float | None
    miscalibration: float | None
    r2: float | None
    ne: float | None
    ne_gain: Gain | None
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
    def is_static(self) -> bool:
        """True if this is fixed weights of the losses, searched or given."""
        return self.method.name.split(":")[0] == STATIC_WEIGHTS

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
        few: tasks that can be scored, but have few test rows of their rarer class (of a regression, few test rows):
            task to that number. They are in no mean, unless every task is among them.
        means_over: the tasks that the mean normalized error includes: the binary ones with enough rows; without one,
            the regressions, whose error is another.
        error: the name of that error: NE, or of regressions NSE.
        regressions: the tasks to regress, out of ``tasks``.
        busy: whether the machine was too busy to measure speed.
    """

    view: View
    methods: tuple[MethodResult, ...]
    tasks: tuple[str, ...]
    unscored: tuple[str, ...]
    few: Mapping[str, int]
    means_over: tuple[str, ...]
    error: str
    regressions: tuple[str, ...]
    busy: bool

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
    """Return all numbers of the report's tables for one view, from the finished runs.

    A run that diverged counts against its method, see :func:`equipoise.report.diverged.with_diverged_counted`.
    """
    plan, ended_of = results.plan, results.of
    results = with_diverged_counted(results)
    ok = {method.name: _ok_runs(results, method.name) for method in plan.methods}
    ended_well = [run for runs in ok.values() for run in runs]
    scored = tuple(
        task
        for task in (plan.tasks if ended_well else ())
        if all(math.isfinite(_value(run, view, task, "ne")) for run in ended_well)
    )
    counts = results.plan.label_counts.get("validation" if view == "validation" else "test", {})
    few = {task: counts[task].scarcest for task in scored if task in counts and counts[task].scarcest < FEW_POSITIVES}
    regressions = tuple(task for task in scored if plan.about(task).kind == "regression")
    enough = [task for task in scored if task not in few] or list(scored)
    classes = tuple(task for task in enough if task not in regressions)
    numbers = tuple(task for task in enough if task in regressions)
    means_over = classes or numbers
    equal, alone = ok.get(EQUAL_WEIGHTS, []), ok.get(SINGLE_TASK, [])
    control = results.throughput.get(EQUAL_WEIGHTS)
    methods = []
    for method in plan.methods:
        ended = ended_of(method.name)
        diverged = sum(run.status == "diverged" for run in ended)
        runs = ok[method.name]
        against_equal = equal if method.name != EQUAL_WEIGHTS else []
        against_alone = alone if method.name != SINGLE_TASK else []
        tasks = {
            task: TaskResult(
                values={
                    name: _mean(_per_seed(runs, view, [task], name))
                    for name in (
                        *(measure.name for measure in measures_of(plan.about(task))),
                        "log_loss",
                        "calibration",
                    )
                },
                gains=_gains(runs, against_equal, view, task, plan.about(task)),
                transfer=_gains(runs, against_alone, view, task, plan.about(task)),
            )
            for task in scored
        }
        speed = results.throughput.get(method.name)
        memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
        methods.append(
            MethodResult(
                method=method,
                rates=tuple(sorted({rate_of(run) for run in ended})) or _planned_rate(results, method.name),
                ok=len(ended) - diverged,
                diverged=diverged,
                missing=len(plan.seeds) - len(ended),
                auc=_mean(_per_seed(runs, view, classes, "auc")),
                gauc=_mean(_per_seed(runs, view, classes, "gauc")),
                log_loss=_mean(_per_seed(runs, view, classes, "log_loss")),
                miscalibration=_mean(_miscalibration(runs, view, classes)),
                r2=_mean(_per_seed(runs, view, numbers, "r2")),
                ne=_mean(_per_seed(runs, view, means_over, "ne")),
                ne_gain=_gain(runs, against_equal, view, means_over, MEASURES["ne"]) if against_equal else None,
                delta_m=_delta_m(plan, runs, alone, view, [*classes, *numbers]) if against_alone else None,
                tasks=tasks,
                speed=speed,
                speed_verdict=_speed_verdict(speed, control),
                peak_memory=speed.peak_memory if speed and speed.peak_memory else max(memory, default=None),
            )
        )
    unscored = tuple(task for task in plan.tasks if task not in scored) if ended_well else ()
    return Analysis(
        view, tuple(_adjusted(methods)), scored, unscored, few, means_over, error_name(plan, means_over), regressions,
        _is_busy(control),
    )  # fmt: skip


def gain_between(results: Results, method: str, reference: str, tasks: Sequence[str], *, view: View = "test") -> Gain:
    """Return the gain in mean normalized error of one method over another, in per cent; p is not adjusted."""
    counted = with_diverged_counted(results)
    return _gain(_ok_runs(counted, method), _ok_runs(counted, reference), view, tasks, MEASURES["ne"])


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


def _miscalibration(runs: Sequence[Run], view: View, tasks: Sequence[str]) -> dict[int, float]:
    values = {run.seed: [abs(_value(run, view, task, "calibration") - 1) for task in tasks] for run in runs if tasks}
    return {seed: math.fsum(off) / len(off) for seed, off in values.items() if all(map(math.isfinite, off))}


def _mean(values: Mapping[int, float]) -> float | None:
    return math.fsum(values.values()) / len(values) if values else None


def _gains(runs: Sequence[Run], reference: Sequence[Run], view: View, task: str, about: PlannedTask) -> dict[str, Gain]:
    if not reference:
        return {}
    return {measure.name: _gain(runs, reference, view, [task], measure) for measure in measures_of(about)}


def _gain(runs: Sequence[Run], reference: Sequence[Run], view: View, tasks: Sequence[str], measure: Measure) -> Gain:
    here, there = _per_seed(runs, view, tasks, measure.name), _per_seed(reference, view, tasks, measure.name)
    if measure.relative:
        above_zero = {seed: value for seed, value in there.items() if value > 0}
        return Gain(relative_gain(here, above_zero, higher_is_better=measure.higher_is_better))
    return Gain(paired_comparison(here, there))


def _delta_m(
    plan: PlannedRuns, runs: Sequence[Run], alone: Sequence[Run], view: View, tasks: Sequence[str]
) -> PairedComparison:
    def metrics(run: Run) -> dict[str, dict[str, float]]:
        return {
            task: {
                metric: value
                for metric in (("auc", "ne") if plan.about(task).kind == "binary" else ("rmse", "mae"))
                if (value := _value(run, view, task, metric)) > 0
            }
            for task in tasks
        }

    if not tasks:
        return interval([])
    return delta_m({run.seed: metrics(run) for run in runs}, {run.seed: metrics(run) for run in alone})


def _adjusted(methods: Sequence[MethodResult]) -> list[MethodResult]:
    """Apply Holm's adjustment; a family is one column of the main table, or one table by task."""
    places = [(entry.method.name, task) for entry in methods for task in entry.tasks]
    cells = {(entry.method.name, task): found for entry in methods for task, found in entry.tasks.items()}

    def family(of: Callable[[TaskResult], Mapping[str, Gain]]) -> dict[tuple[str, str], dict[str, Gain]]:
        adjusted: dict[tuple[str, str], dict[str, Gain]] = {place: {} for place in places}
        for name in MEASURES:
            gains = [of(cells[place]).get(name) for place in places]
            for place, gain in zip(places, _holm(gains), strict=True):
                if gain is not None:
                    adjusted[place][name] = gain
        return adjusted

    gains, transfer = family(lambda cell: cell.gains), family(lambda cell: cell.transfer)
    return [
        replace(
            entry,
            ne_gain=ne_gain,
            tasks={
                task: replace(found, gains=gains[entry.method.name, task], transfer=transfer[entry.method.name, task])
                for task, found in entry.tasks.items()
            },
        )
        for entry, ne_gain in zip(methods, _holm([entry.ne_gain for entry in methods]), strict=True)
    ]


def _holm(gains: Sequence[Gain | None]) -> list[Gain | None]:
    adjusted = holm([gain.over_seeds.p if gain is not None else None for gain in gains])
    return [gain if gain is None else replace(gain, adjusted_p=p) for gain, p in zip(gains, adjusted, strict=True)]
