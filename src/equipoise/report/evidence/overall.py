"""Methods over all settings of a suite: ranks, wins and losses against equal weights, tasks gained and lost, cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from equipoise.comparison.results import EQUAL_WEIGHTS, Throughput
from equipoise.report.analysis import QUIET, Gain, MethodResult
from equipoise.report.evidence.suite import Setting, Suite
from equipoise.report.ranks import RankComparison, compare_ranks, pareto_front

__all__ = ["FOCUS", "MethodOverall", "Overall", "TaskChange", "over_all_settings"]

FOCUS = "multibalance"
"""The method that the answer of the page is about: the library's own default."""


@dataclass(frozen=True)
class TaskChange:
    """A task on which a method is clearly better or worse than equal weights, after Holm's adjustment."""

    setting: str
    task: str
    gain: Gain
    positives: int | None


@dataclass(frozen=True)
class MethodOverall:
    """One method over the settings in which it has results.

    Attributes:
        name, label, summary: as in the plans.
        is_reference, is_single_task, is_static: see :class:`equipoise.report.analysis.MethodResult`.
        gains: name of a setting to the gain in its mean error over equal weights; empty for equal weights.
        mean_gain: mean of these over the settings that are ranked, in per cent; None where it lacks one of them.
        rank: average rank; None where it lacks a setting that is ranked.
        tasks_better, tasks_worse: tasks that clearly change, over all settings.
        tasks: the number of tasks that were tested.
        speed: geometric mean of the QPS ratio over the ranked settings where its interval is narrow (about 10 %).
        memory: geometric mean of peak memory over that of equal weights.
        diverged: runs that diverged, out of ``runs``.
    """

    name: str
    label: str
    summary: str
    is_reference: bool
    is_single_task: bool
    is_static: bool
    gains: Mapping[str, Gain]
    mean_gain: float | None
    rank: float | None
    tasks_better: Sequence[TaskChange]
    tasks_worse: Sequence[TaskChange]
    tasks: int
    speed: float | None
    memory: float | None
    diverged: int
    runs: int

    @property
    def is_joint(self) -> bool:
        """True if it trains one model in one training: neither one model per task nor searched weights."""
        return not (self.is_single_task or self.is_static)

    def counts(self, *, firm: bool = False) -> tuple[int, int, int]:
        """Return the settings in which it is better, not clearly different, and worse; ``firm``: after Holm."""
        better = sum(gain.better and (gain.firm or not firm) for gain in self.gains.values())
        worse = sum(gain.worse and (gain.firm or not firm) for gain in self.gains.values())
        return better, len(self.gains) - better - worse, worse


@dataclass(frozen=True)
class Overall:
    """A suite as a whole.

    Attributes:
        methods: by average rank, best first; then those without one, references last.
        ranked: the settings that ranks and means are over.
        ranks: None where fewer than two methods are in all of these settings.
        front: names on the front of speed and mean gain, fastest first.
    """

    methods: Sequence[MethodOverall]
    ranked: Sequence[Setting]
    ranks: RankComparison | None
    front: Sequence[str]

    def method(self, name: str) -> MethodOverall | None:
        """Return the method of that name, or None."""
        return next((method for method in self.methods if method.name == name), None)

    @property
    def focus(self) -> MethodOverall | None:
        """The method that the page is about: MultiBalance, or the best-ranked balancing method without it."""
        candidates = [method for method in self.methods if method.is_joint and not method.is_reference and method.gains]
        return next((method for method in candidates if method.name == FOCUS), next(iter(candidates), None))


def over_all_settings(suite: Suite, /) -> Overall:
    """Return each method's results over all settings.

    Ranks and means are over finished settings: those that, with the joint methods that all of them have, make the
    largest complete table. One model per task and searched static weights are references without a rank.
    """
    finished = {setting: _errors(setting) for setting in suite.settings if setting.finished and setting.has_gains}
    ranked = _largest_table(finished)
    shared = _shared(finished[setting] for setting in ranked)
    ranks = None
    if len(shared) > 1:
        ranks = compare_ranks({setting.name: {name: finished[setting][name] for name in shared} for setting in ranked})
    methods = [_method(name, suite.settings, ranked, ranks) for name in _names(suite.settings)]
    methods.sort(key=lambda method: (method.rank or math.inf, not method.is_joint, method.label))
    points = {
        method.name: (method.speed, method.mean_gain)
        for method in methods
        if method.is_joint and method.speed is not None and method.mean_gain is not None
    }
    return Overall(methods, ranked, ranks, pareto_front(points))


def _names(settings: Iterable[Setting]) -> list[str]:
    return list(dict.fromkeys(method.name for setting in settings for method in setting.results.plan.methods))


def _shared(of_settings: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the methods that have an error in each setting."""
    first, *others = [*of_settings] or [{}]
    return [name for name in first if all(name in other for other in others)]


def _largest_table(errors: Mapping[Setting, Mapping[str, float]]) -> list[Setting]:
    """Leave out settings one by one, down to two, as long as that makes settings × shared methods larger.

    A single setting with methods of its own would otherwise take all others out of the ranking.
    """
    kept = list(errors)

    def size(settings: Sequence[Setting]) -> int:
        return len(settings) * len(_shared(errors[setting] for setting in settings))

    while len(kept) > 2:
        fewer = max(([other for other in kept if other is not setting] for setting in kept), key=size)
        if size(fewer) <= size(kept):
            break
        kept = fewer
    return kept


def _errors(setting: Setting) -> dict[str, float]:
    """Return the mean error of each joint method that was trained once, not searched."""
    return {
        entry.method.name: entry.ne for entry in setting.analysis.joint if entry.ne is not None and not entry.is_static
    }


def _method(
    name: str, settings: Sequence[Setting], ranked: Sequence[Setting], ranks: RankComparison | None
) -> MethodOverall:
    found = [(setting, entry) for setting in settings if (entry := setting.analysis.method(name))]
    newest = found[-1][1]
    gains = {
        setting.name: entry.ne_gain
        for setting, entry in found
        if setting.has_gains and entry.ne_gain and entry.ne_gain.mean is not None
    }
    changes = [change for setting, entry in found for change in _changes(setting, entry)]
    return MethodOverall(
        name=name,
        label=newest.method.label,
        summary=newest.method.summary,
        is_reference=newest.is_reference,
        is_single_task=newest.is_single_task,
        is_static=newest.is_static,
        gains=gains,
        mean_gain=0.0 if newest.is_reference else _mean_gain(gains, ranked),
        rank=ranks.average.get(name) if ranks else None,
        tasks_better=[change for change in changes if change.gain.firm and change.gain.better],
        tasks_worse=[change for change in changes if change.gain.firm and change.gain.worse],
        tasks=len(changes),
        speed=_geometric_mean(_speeds(ranked, name)),
        memory=_geometric_mean(_memory_ratios(ranked, name)),
        diverged=sum(entry.diverged for _, entry in found),
        runs=sum(entry.ok + entry.diverged for _, entry in found),
    )


def _changes(setting: Setting, entry: MethodResult) -> list[TaskChange]:
    """Return the gain on each task that was tested and has enough rows."""
    return [
        TaskChange(setting.title, task, gain, setting.positives(task))
        for task, found in entry.tasks.items()
        if task not in setting.analysis.few and (gain := found.gains.get("ne")) and gain.verdict != "untested"
    ]


def _mean_gain(gains: Mapping[str, Gain], ranked: Sequence[Setting]) -> float | None:
    means = [gain.mean for setting in ranked if (gain := gains.get(setting.name)) and gain.mean is not None]
    return math.fsum(means) / len(means) if means and len(means) == len(ranked) else None


def _speeds(settings: Sequence[Setting], name: str) -> list[float]:
    """Return the QPS ratios of a method in the settings where they are known to about 10 %."""
    entries = [entry for setting in settings if not setting.analysis.busy and (entry := setting.analysis.method(name))]
    return [
        1.0 if entry.is_reference else entry.speed.ratio for entry in entries if entry.speed and _known(entry.speed)
    ]


def _known(speed: Throughput) -> bool:
    """Return whether the interval is no wider than that of two identical learners on a quiet machine."""
    return bool(speed.low and speed.high) and (speed.high or 0) / (speed.low or 1) <= QUIET[1] / QUIET[0]


def _memory_ratios(settings: Sequence[Setting], name: str) -> list[float]:
    """Return peak memory over that of equal weights, in the settings where both were measured."""
    pairs = [(setting.analysis.method(name), setting.analysis.method(EQUAL_WEIGHTS)) for setting in settings]
    return [
        entry.peak_memory / equal.peak_memory
        for entry, equal in pairs
        if entry and equal and entry.peak_memory and equal.peak_memory
    ]


def _geometric_mean(ratios: Sequence[float]) -> float | None:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else None
