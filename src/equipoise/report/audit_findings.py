"""Conclusions of an audit: who is drowned out, who suffers, what balancing can win, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from equipoise.comparison.audit import Audit, Probe
from equipoise.comparison.results import EQUAL_WEIGHTS, SINGLE_TASK, Results
from equipoise.report.analysis import FEW_POSITIVES, MIN_PAIRS, Analysis, Gain, analyse
from equipoise.report.cells import PERCENT, number, percent, signed
from equipoise.report.phrases import listed
from equipoise.report.statistics import PairedComparison, relative_gain
from equipoise.training import Run

__all__ = ["RELEVANT", "STATIC", "Conclusion", "TaskFinding", "Way", "conclude"]

RELEVANT: Final = 0.3
"""Per cent of NE under which a gain is too small to act on, however clear."""

STATIC: Final = "static weights"
_DROWNED: Final = 0.6  # of the share that a gradient would have among tasks of equal length
_OPPOSED: Final = -0.1
_SETTLED: Final = 0.25  # the first part of the training, in which lengths say little

Advice = Literal["leave", "balance", "split", "unclear"]


@dataclass(frozen=True)
class Way:
    """One way of training against equal weights: the gain in validation NE in per cent, paired by seed.

    Tasks with few validation rows of one class are in no mean and not in ``by_task``.
    """

    name: str
    label: str
    gain: PairedComparison
    by_task: Mapping[str, PairedComparison]

    @property
    def pays(self) -> bool:
        """True if the gain is clear and large enough to act on."""
        return _pays(self.gain)


@dataclass(frozen=True)
class TaskFinding:
    """One task under equal weights.

    Attributes:
        share: the length of its gradient over the sum of all lengths, mean over the training without its first quarter.
        opposed: the mean cosine with the gradient of the task that opposes it most, and that task.
        helped: the mean cosine between Adam's update and its gradient.
        alone: what a model of its own gains on it, in per cent of NE; above 0: negative transfer.
        best: the best gain on it of any joint way.
        drowned_out: whether its gradient is short, and a model of its own or a joint way is clearly better on it.
    """

    name: str
    share: float
    opposed: tuple[float, str]
    helped: float
    alone: PairedComparison | None
    best: tuple[str, PairedComparison] | None
    drowned_out: bool

    @property
    def suffers(self) -> bool:
        """True if a model of its own is clearly better: negative transfer."""
        return _pays(self.alone)


@dataclass(frozen=True)
class Conclusion:
    """The advice of an audit, and its reasons.

    Attributes:
        advice: leave the sum of the losses, balance, split the model, or unclear for want of seeds.
        headline: the advice in a sentence.
        reasons: further sentences.
        ways: the joint ways and one model per task, against equal weights.
        tasks: the findings of each task.
        update: the mean cosine between Adam's update and the joint gradient.
    """

    advice: Advice
    headline: str
    reasons: tuple[str, ...]
    ways: tuple[Way, ...]
    tasks: tuple[TaskFinding, ...]
    update: float


def conclude(audit: Audit, results: Results, /) -> Conclusion:
    """Return the conclusion of an audit from its gradients, its comparison and its search."""
    analysis = analyse(results, "validation")
    ways = _ways(audit, results, analysis)
    settled = audit.probes[math.ceil(len(audit.probes) * _SETTLED) :]
    tasks = tuple(_task(name, place, settled, ways) for place, name in enumerate(results.plan.tasks))
    update = _mean([reading.update for reading in settled])
    joint = sorted((way for way in ways if way.name != SINGLE_TASK), key=lambda way: -(way.gain.mean or -math.inf))
    alone = next((way for way in ways if way.name == SINGLE_TASK), None)
    advice, headline = _advice(joint, alone)
    reasons = [
        *_few_rows(analysis),
        *_task_reasons(tasks),
        *_room_reasons(joint, alone, advice),
        *_adam_reasons(update, tasks),
    ]
    if audit.rate_tuned:
        reasons.append(
            "Equal weights chose the learning rate; the other ways took it over, and may gain more at their own."
        )
    return Conclusion(advice, headline, tuple(reasons), ways, tasks, update)


def _ways(audit: Audit, results: Results, analysis: Analysis) -> tuple[Way, ...]:
    equal = [run for run in results.of(EQUAL_WEIGHTS) if run.status == "ok"]
    runs = {method.name: results.of(method.name) for method in results.plan.methods if method.name != EQUAL_WEIGHTS}
    labels = {method.name: method.label for method in results.plan.methods} | {STATIC: "searched static weights"}
    if audit.confirmed:
        runs[STATIC] = audit.confirmed_runs()
    return tuple(
        Way(
            name,
            labels[name],
            _gain(of_way, equal, analysis.means_over),
            {task: _gain(of_way, equal, [task]) for task in analysis.tasks if task not in analysis.few},
        )
        for name, of_way in runs.items()
    )


def _gain(runs: Sequence[Run], equal: Sequence[Run], tasks: Sequence[str]) -> PairedComparison:
    return relative_gain(_scores(runs, tasks), _scores(equal, tasks), higher_is_better=False)


def _scores(runs: Sequence[Run], tasks: Sequence[str]) -> dict[int, float]:
    scores = {
        run.seed: math.fsum(run.validation[task]["ne"] for task in tasks) / len(tasks)
        for run in runs
        if run.status == "ok" and tasks
    }
    return {seed: score for seed, score in scores.items() if math.isfinite(score)}


def _task(name: str, place: int, settled: Sequence[Probe], ways: Sequence[Way]) -> TaskFinding:
    names = list(settled[0].lengths) if settled else [name]
    share = _mean([reading.lengths[name] / (sum(reading.lengths.values()) or 1.0) for reading in settled])
    cosines = {
        other: _mean([reading.cosines[place][at] for reading in settled])
        for at, other in enumerate(names)
        if other != name
    }
    against = min(cosines, key=lambda other: cosines[other]) if cosines else name
    alone = next((way.by_task.get(name) for way in ways if way.name == SINGLE_TASK), None)
    joint = [(way.label, way.by_task[name]) for way in ways if way.name != SINGLE_TASK and name in way.by_task]
    best = max(joint, key=lambda found: found[1].mean or -math.inf, default=None)
    short = share < _DROWNED / len(names)
    gains = _pays(alone) or (best is not None and _pays(best[1]))
    return TaskFinding(
        name,
        share,
        (cosines.get(against, 0.0), against),
        _mean([reading.helped[name] for reading in settled]),
        alone,
        best,
        short and gains,
    )


def _pays(found: PairedComparison | None) -> bool:
    """Return True if a gain is clear, over enough seeds, and large enough to act on."""
    return found is not None and Gain(found).better and (found.mean or 0.0) >= RELEVANT


def _advice(joint: Sequence[Way], alone: Way | None) -> tuple[Advice, str]:
    best = joint[0] if joint else None
    if best is None or best.gain.pairs < MIN_PAIRS:
        return "unclear", f"Too few seeds to advise: at least {MIN_PAIRS} are needed."
    if best.pays:
        said = f"Balance the tasks: {best.label} lowers mean validation NE by {_with_interval(best.gain)}."
        if alone is not None and alone.pays and (alone.gain.low or 0.0) > (best.gain.high or 0.0):
            said += (
                f" One model per task gains more still, {_with_interval(alone.gain)}, at the price of as many models."
            )
        return "balance", said
    if alone is not None and alone.pays:
        return "split", (
            "Split the model: no way to weigh the tasks clearly gains enough, but one model per task lowers mean "
            f"validation NE by {_with_interval(alone.gain)}."
        )
    return "leave", (
        "Leave it: nothing tried here is clearly better than the plain sum of the losses by "
        f"{number(RELEVANT, 1)}{PERCENT} of NE or more."
    )


def _with_interval(gain: PairedComparison) -> str:
    return f"{number(gain.mean, 2)}{PERCENT} (95{PERCENT} interval {signed(gain.low, 2)} to {signed(gain.high, 2)})"


def _few_rows(analysis: Analysis) -> list[str]:
    """Name the tasks on which the validation rows allow no judgement."""
    if not analysis.few:
        return []
    named = [f"{task} ({count})" for task, count in analysis.few.items()]
    return [
        f"Fewer than {FEW_POSITIVES} validation rows of one class, too few for a judgement: {listed(named)}. More data "
        "may change the advice."
    ]


def _task_reasons(tasks: Sequence[TaskFinding]) -> list[str]:
    said = []
    equal_share = 1 / len(tasks)
    for task in tasks:
        if task.drowned_out:
            name, gain = task.best if task.best is not None and _pays(task.best[1]) else ("", None)
            wins = f"with {name} its NE gains {percent(gain.mean, 1)}" if gain is not None else ""
            if task.suffers and task.alone is not None:
                own = f"with a model of its own {percent(task.alone.mean, 1)}"
                wins = f"{wins}, {own}" if wins else own
            said.append(
                f"{task.name} is drowned out: its gradient makes up {task.share:.0%} of all lengths, where equal ones "
                f"would be {equal_share:.0%}; {wins}."
            )
    if suffering := [task for task in tasks if task.suffers and not task.drowned_out]:
        each = listed([f"{task.name} ({percent(task.alone.mean if task.alone else None, 1)})" for task in suffering])
        said.append(f"Negative transfer: a model of its own is clearly better on {each}.")
    if not any(task.suffers for task in tasks):
        said.append("No task suffers clearly from being trained with the others.")
    opposed = {frozenset((task.name, task.opposed[1])): task for task in tasks if task.opposed[0] < _OPPOSED}
    if opposed:
        pairs = [
            f"{task.name} and {task.opposed[1]} (cosine {number(task.opposed[0], 2)})" for task in opposed.values()
        ]
        said.append(f"Opposed gradients: {listed(pairs)}.")
    else:
        said.append("No two tasks' gradients are opposed on average.")
    return said


def _room_reasons(joint: Sequence[Way], alone: Way | None, advice: Advice) -> list[str]:
    said = []
    static = next((way for way in joint if way.name == STATIC), None)
    if static is not None and static.gain.mean == 0:
        said.append("The search for static weights found none that are better than equal ones.")
    elif static is not None and static.gain.mean is not None:
        said.append(
            f"The best static weights found gain {_with_interval(static.gain)}; they were searched on the same "
            "validation rows, so take it for what weighing the losses could win at most."
        )
    if advice in {"leave", "split"}:
        widths = [
            way.gain.high - way.gain.low for way in joint if way.gain.high is not None and way.gain.low is not None
        ]
        if widths:
            said.append(
                f"A gain of a joint way under about {number(max(widths) / 2, 1)}{PERCENT} would not have shown: more "
                "seeds (--seeds) show smaller ones."
            )
    if advice in {"leave", "split"} and alone is not None and alone.gain.verdict == "below":
        said.append(f"Training together helps: one model per task is worse by {_with_interval(_turned(alone.gain))}.")
    return said


def _turned(gain: PairedComparison) -> PairedComparison:
    flip = [None if value is None else -value for value in (gain.mean, gain.high, gain.low)]
    return PairedComparison(gain.pairs, gain.unpaired, flip[0], flip[1], flip[2], gain.p)


def _adam_reasons(update: float, tasks: Sequence[TaskFinding]) -> list[str]:
    said = f"Adam's update has a cosine of {number(update, 2)} with the gradient of the batch it follows"
    hurt = [task.name for task in tasks if task.helped < 0]
    if hurt:
        return [f"{said}; on average it points against {listed(hurt)}, which methods on updates (PUB) address."]
    return [f"{said}, and points against no task on average."]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
