"""The outcome of a comparison in a few sentences, which claim only what the intervals support."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.comparison.results import EQUAL_WEIGHTS, SINGLE_TASK, Results
from equipoise.comparison.tuning import scores_of
from equipoise.report.analysis import FEW_POSITIVES, MIN_PAIRS, Analysis, Gain, MethodResult, gain_between
from equipoise.report.cells import PERCENT, number, percent, signed
from equipoise.report.phrases import counted, equals, listed

__all__ = ["against_static_weights", "summary"]

_MEAN_ERROR = {
    "NE": "mean normalized entropy (NE, lower is better)",
    "NSE": "mean normalized squared error (NSE, lower is better)",
}


def summary(analysis: Analysis) -> list[str]:
    """Return the outcome in a few sentences: which method is better by how much, on which tasks, and what it costs.

    Only what the intervals support is claimed: a gain needs three paired seeds and Holm's adjustment, a difference in
    speed an interval that excludes 1.
    """
    joint = [entry for entry in analysis.joint if entry.ne is not None]
    if not joint:
        return ["No run of a joint method has ended well yet, so there is nothing to compare."]
    if not analysis.ranks:
        return [
            f"No method is ranked: every task has fewer than {FEW_POSITIVES} test rows of its rarer class "
            f"({listed([f'{task} has {count}' for task, count in analysis.few.items()])}), so that metrics are mostly "
            "chance."
        ]
    best, equal = joint[0], analysis.method(EQUAL_WEIGHTS)
    tasks, error = _tasks(analysis), analysis.error
    if equal is None or equal.ne is None:
        return [
            f"{best.method.label} reached the lowest mean {error} over {tasks}, {number(best.ne, 4)}. "
            "Equal weights, the reference for every gain, has no result here, so no gain can be stated."
        ]
    if len(joint) == 1:
        auc = "" if best.auc is None else f" and mean AUC {number(best.auc, 4)}"
        return [f"Only {best.method.label} has results so far: mean {error} {number(best.ne, 4)}{auc} over {tasks}."]
    named = next((entry for entry in joint if entry.ne_gain and entry.ne_gain.firm and entry.ne_gain.better), best)
    return [
        _headline(named, joint, equal, tasks, _MEAN_ERROR[error]),
        *_by_task(named, analysis),
        *_others(analysis, named),
        *_alone(analysis, best),
        *_costs(named, analysis),
    ]


def against_static_weights(results: Results, analysis: Analysis) -> list[str]:
    """Say what static weights reached, and how the best other joint method does against them; nothing without them."""
    static = next((entry for entry in analysis.joint if entry.is_static and entry.ne is not None), None)
    others = [entry for entry in analysis.joint if not entry.is_static and entry.ne is not None]
    if static is None or static.ne_gain is None or static.ne_gain.verdict == "untested" or not analysis.ranks:
        return []
    trials = len(scores_of(results.tuning, static.method.name))
    found = f", found in {counted(trials, 'trial')}," if trials else ""
    said = f"{static.method.label}{found} gain {percent(static.ne_gain.mean, 2)} ({_tested(static.ne_gain)})"
    best = next((entry for entry in others if not entry.is_reference), None)
    if best is None:
        return [f"{said}."]
    gain = gain_between(results, best.method.name, static.method.name, analysis.means_over, view=analysis.view)
    verdicts = {"above": "better than they are", "below": "worse than they are"}
    verdict = verdicts.get(gain.verdict, "not told apart from them")
    return [f"{said}; {best.method.label} is {verdict}: {percent(gain.mean, 2)} ({_tested(gain)})."]


def _headline(
    named: MethodResult, joint: Sequence[MethodResult], equal: MethodResult, tasks: str, mean_error: str
) -> str:
    best = joint[0]
    pairs = max((entry.ne_gain.over_seeds.pairs for entry in joint if entry.ne_gain), default=0)
    against = "" if best is equal else f" against {number(equal.ne, 4)} for equal weights"
    if pairs < MIN_PAIRS:
        return (
            f"Too few seeds to say which method is better: {counted(pairs, 'paired seed')}, and at least {MIN_PAIRS} "
            f"are needed. So far {best.method.label} has the lowest {mean_error} over {tasks}: "
            f"{number(best.ne, 4)}{against}."
        )
    if named.is_reference:
        return (
            "No joint method beat equal weights: ordinary training on the plain sum of losses has the lowest "
            f"{mean_error} over {tasks}, {number(equal.ne, 4)}."
        )
    values = f"{number(named.ne, 4)} against {number(equal.ne, 4)} for equal weights"
    lowest = f"{named.method.label} has the lowest {mean_error} over {tasks}: {values}"
    gain = named.ne_gain
    if gain is None or gain.mean is None or gain.verdict == "untested":
        return f"{lowest}. The difference cannot be tested, for want of seeds that both have run."
    if not (gain.better and gain.firm):
        return f"No method is clearly better than equal weights. {lowest}{_why_not_clear(gain)}."
    said = f"a gain of {number(gain.mean, 2)}{PERCENT} ({_tested(gain)})."
    if named is best:
        return f"{lowest}, {said}"
    return (
        f"{named.method.label} is clearly better than equal weights: {mean_error} over {tasks} {values}, {said} "
        f"{best.method.label} has a lower one, {number(best.ne, 4)}, but its gain is not clear."
    )


def _why_not_clear(gain: Gain) -> str:
    if gain.worse:
        return f", yet seed by seed it is worse by {number(-(gain.mean or 0.0), 2)}{PERCENT} ({_tested(gain)})"
    if gain.better:
        return (
            f". Its gain of {percent(gain.mean, 2)} ({_tested(gain)}) is no longer clear once p is adjusted for the "
            f"number of methods: p {equals(gain.adjusted_p)}"
        )
    return f". The difference of {percent(gain.mean, 2)} ({_tested(gain)}) is within what chance alone would give"


def _tested(gain: Gain) -> str:
    found = gain.over_seeds
    between = f"95{PERCENT} interval {signed(found.low, 2)} to {percent(found.high, 2)}"
    return f"{between}, {counted(found.pairs, 'paired seed')}, p {equals(found.p)}"


def _by_task(named: MethodResult, analysis: Analysis) -> list[str]:
    """Return the tasks on which the method is clearly better or worse than equal weights, after Holm's adjustment."""
    gains = {
        task: gain
        for task, found in named.tasks.items()
        if (gain := found.gains.get("ne")) and gain.mean is not None and task not in analysis.few
    }
    if len(gains) < 2 or all(gain.verdict == "untested" for gain in gains.values()):
        return []

    def sized(tasks: Sequence[str]) -> str:
        errors = {task: "NSE" if task in analysis.regressions else "NE" for task in tasks}
        return listed([f"{task} ({errors[task]} {percent(gains[task].mean, 1)})" for task in tasks])

    by_size = sorted(gains, key=lambda task: -(gains[task].mean or 0.0))
    won = [task for task in by_size if gains[task].firm and gains[task].better]
    lost = [task for task in reversed(by_size) if gains[task].firm and gains[task].worse]
    if not won and not lost:
        return ["On no single task is it clearly better or worse, once p is adjusted for the number of tests."]
    said = [f"clearly better on {sized(won)}"] if won else []
    said.append(f"clearly worse on {sized(lost)}" if lost else "clearly worse on none")
    return [f"Task by task it is {' and '.join(said)}."]


def _others(analysis: Analysis, best: MethodResult) -> list[str]:
    """Return every other joint method: better or worse than equal weights after Holm's adjustment, or neither."""
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    for entry in analysis.joint:
        gain = entry.ne_gain
        if entry is best or gain is None or gain.mean is None or gain.verdict == "untested":
            continue
        said = f"{entry.method.label} ({percent(gain.mean, 2)})"
        if gain.firm:
            (better if gain.better else worse).append(said)
        else:
            unclear.append(said)
    sentences = []
    if better:
        sentences.append(f"Also clearly better than equal weights: {listed(better)}.")
    if worse:
        sentences.append(f"Clearly worse than equal weights: {listed(worse)}.")
    if unclear:
        sentences.append(f"Not clearly different from equal weights: {listed(unclear)}.")
    return sentences


def _alone(analysis: Analysis, best: MethodResult) -> list[str]:
    alone = analysis.method(SINGLE_TASK)
    if alone is None or alone.ne is None or best.ne is None or alone.ne >= best.ne:
        return []
    models = f"{len(analysis.tasks) + len(analysis.unscored)} models"
    gain = alone.ne_gain
    mean, value = f"mean {analysis.error}", number(alone.ne, 4)
    if gain is not None and gain.firm and gain.better:
        return [f"One model per task does better still, {mean} {value}, at the price of {models}."]
    return [f"One model per task has a lower {mean}, {value}, but not clearly, and takes {models}."]


def _costs(named: MethodResult, analysis: Analysis) -> list[str]:
    if named.is_reference or named.speed is None:
        return []
    label, speed = named.method.label, named.speed
    if named.speed_verdict == "unclear" and analysis.busy:
        return ["What it costs in speed could not be measured: the machine was too busy."]
    if named.speed_verdict == "unclear":
        between = f", {speed.low:.2f} to {speed.high:.2f}" if speed.low and speed.high else ""
        return [
            f"Whether {label} trains faster or slower than equal weights cannot be told here (95{PERCENT} interval of "
            f"the ratio{between})."
        ]
    if named.speed_verdict == "same":
        return [f"{label} trains as fast as equal weights, within 5{PERCENT}."]
    return [
        f"{label} trains {abs(100 * (speed.ratio - 1)):.1f}{PERCENT} {named.speed_verdict} than equal weights "
        f"(ratio {speed.low:.3f} to {speed.high:.3f})."
    ]


def _tasks(analysis: Analysis) -> str:
    """Return the number of tasks in a mean, and the number of all tasks of that kind if some are left out."""
    count, of = len(analysis.means_over), len(analysis.tasks) + len(analysis.unscored)
    if analysis.regressions and analysis.error == "NE":
        binary = [task for task in analysis.tasks if task not in analysis.regressions]
        return counted(count, "binary task") if count == len(binary) else f"{count} of {len(binary)} binary tasks"
    return counted(of, "task") if count == of else f"{count} of {of} tasks"
