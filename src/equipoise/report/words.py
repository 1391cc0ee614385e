"""What the numbers say, in sentences for a reader who has never seen the project, and what to beware of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from equipoise.compare.results import EQUAL_WEIGHTS, SINGLE_TASK, PlannedMethod, Results
from equipoise.report.analysis import Analysis, Gain, MethodResult
from equipoise.report.tables import PERCENT, number, p_value, percent, signed
from equipoise.training import Run

__all__ = ["cautions", "summary", "transfer_summary"]

_NOTABLE = 0.05  # per cent of NE: changes under this are not worth a word


def summary(results: Results, analysis: Analysis) -> list[str]:
    """The outcome in a few sentences: which method won by how much, who else moved, what it costs."""
    plan = results.plan
    joint = [entry for entry in analysis.joint if entry.ne is not None]
    if not joint:
        return ["No run of a joint method has ended well yet, so there is nothing to compare."]
    best, equal = joint[0], analysis.method(EQUAL_WEIGHTS)
    tasks = _count(len(plan.tasks), "task")
    if equal is None or equal.ne is None:
        return [
            f"{best.method.label} reached the lowest mean NE over {tasks}, {number(best.ne, 4)}. "
            "Equal weights, the reference for every gain, has no result here, so no gain can be stated."
        ]
    if len(joint) == 1:
        return [
            f"Only {best.method.label} has results so far: mean NE {number(best.ne, 4)} and mean AUC "
            f"{number(best.auc, 4)} over {tasks}."
        ]
    return [
        _winner(best, equal, tasks),
        *_by_task(best if best.ne_gain else None),
        *_others(analysis, best),
        *_alone(analysis, best),
        *_costs(best),
    ]


def transfer_summary(analysis: Analysis) -> list[str]:
    """Which tasks suffer under equal weights against training alone, and what each method does about them."""
    alone, equal = analysis.method(SINGLE_TASK), analysis.method(EQUAL_WEIGHTS)
    if alone is None or alone.ne is None:
        return ["Single-task training has no result here, so negative transfer cannot be told."]
    if equal is None or equal.ne is None:
        return ["Equal weights has no result here; the table shows the other methods against training alone."]
    gains = {task: found.ne_transfer for task, found in equal.tasks.items() if found.ne_transfer}
    if all(gain.over_seeds.verdict == "untested" for gain in gains.values()):
        lower = [f"{task} ({percent(gain.mean, 1)})" for task, gain in gains.items() if (gain.mean or 0) < 0]
        seen = f"Worse than alone in the seeds at hand: {_listed(lower)}." if lower else "No task is worse than alone."
        return [f"With so few seeds no task can be tested for negative transfer under equal weights. {seen}"]
    sentences = []
    suffering = [task for task, gain in gains.items() if gain.worse]
    gaining = [task for task, gain in gains.items() if gain.better]
    if suffering:
        said = _listed([f"{task} ({percent(gains[task].mean, 1)})" for task in suffering])
        sentences.append(
            f"Under equal weights {said} {_are(suffering)} worse in NE than when trained alone, beyond the "
            f"95{PERCENT} interval over seeds: negative transfer."
        )
    else:
        sentences.append(
            f"Under equal weights no task is worse in NE than when trained alone, beyond the 95{PERCENT} "
            "interval over seeds."
        )
    if gaining:
        said = _listed([f"{task} ({percent(gains[task].mean, 1)})" for task in gaining])
        sentences.append(f"Trained together, {said} {'gains' if len(gaining) == 1 else 'gain'}.")
    sentences += [_remedy(analysis, task) for task in suffering]
    return sentences


def cautions(results: Results, analysis: Analysis) -> list[str]:
    """What a reader must know before trusting the numbers."""
    plan, found = results.plan, []
    finished = len(results.runs)
    if finished < results.planned:
        found.append(
            f"Not finished: {finished} of {results.planned} runs are in; this page shows what there is. "
            "Run the same command again to go on."
        )
    elif not results.throughput:
        found.append("Speed and memory have not been measured: run the same command again to go on.")
    if len(plan.seeds) == 1:
        found.append("One seed only: differences have no interval and no test, and may be chance.")
    elif len(plan.seeds) < 3:
        found.append(f"Only {len(plan.seeds)} seeds: intervals are very wide, and only large effects show.")
    diverged = [entry for entry in analysis.methods if entry.diverged]
    if diverged:
        said = _listed([f"{entry.method.label} ({_count(entry.diverged, 'seed')})" for entry in diverged])
        found.append(f"Diverged: {said}. These seeds are left out of means and comparisons, which flatters the method.")
    found += [_not_finite(method, runs) for method in plan.methods if (runs := _with_bad_steps(results, method.name))]
    if analysis.unscored:
        found.append(
            f"Not scored: {_listed(list(analysis.unscored))}. The test rows hold one class only, so that "
            "neither AUC nor NE is defined; no mean includes it."
        )
    reasons = sorted({run.irreproducible for run in results.runs} - {""})
    found += [f"A second run may differ in the last digits: {reason}." for reason in reasons]
    rates = sorted({run.lr for run in results.tuning})
    edge = [
        method.label
        for method in plan.methods
        if len(rates) > 1 and plan.rates.get(method.name) in {rates[0], rates[-1]}
    ]
    if edge:
        found.append(f"Learning rate at the edge of the grid: {_listed(edge)}. A better rate may lie outside the grid.")
    if plan.grid is None and len(set(plan.rates.values())) == 1 and len(plan.methods) > 1:
        found.append(
            "Every method ran at the same learning rate. Methods differ in the step size that suits them: "
            "add --tune for a fair comparison."
        )
    return found


def _with_bad_steps(results: Results, method: str) -> list[Run]:
    return [run for run in results.runs if run.method == method and run.status == "ok" and run.non_finite]


def _not_finite(method: PlannedMethod, runs: Sequence[Run]) -> str:
    counts: Counter[str] = Counter()
    for run in runs:
        counts.update(run.non_finite)
    skipped = sum(run.skipped_steps for run in runs)
    how = f"{_count(skipped, 'step')} left out whole" if skipped else "the task left out of those steps"
    steps = _listed([f"{task} in {_count(times, 'step')}" for task, times in counts.items()])
    return (
        f"{method.label} met losses or gradients that were not finite, {steps} of {_count(len(runs), 'seed')}: {how}."
    )


def _winner(best: MethodResult, equal: MethodResult, tasks: str) -> str:
    if best.is_reference:
        return (
            "No joint method beat equal weights: ordinary training on the plain sum of losses has the lowest "
            f"mean normalized entropy (NE, lower is better) over {tasks}, {number(equal.ne, 4)}."
        )
    gain = best.ne_gain
    start = (
        f"{best.method.label} has the lowest mean normalized entropy (NE, lower is better) over {tasks}: "
        f"{number(best.ne, 4)} against {number(equal.ne, 4)} for equal weights"
    )
    if gain is None or gain.mean is None:
        return f"{start}; no seed ended well with both, so the difference cannot be tested."
    found = gain.over_seeds
    if found.low is None or found.high is None:
        pairs = _count(found.pairs, "paired seed")
        return f"{start}, a gain of {percent(gain.mean, 2)}; {pairs}, so that it cannot be tested."
    interval = f"95{PERCENT} interval {signed(found.low, 2)} to {percent(found.high, 2)}"
    if gain.worse:
        return f"{start}, yet seed by seed it is worse by {number(-gain.mean, 2)}{PERCENT} ({interval})."
    if not gain.better:
        return (
            f"{start}. The gain of {percent(gain.mean, 2)} ({interval}, p {_equals(found.p)}) is within "
            "what chance alone would give."
        )
    firm = "" if gain.firm else f"; adjusted for several methods p {_equals(gain.adjusted_p)}, so not certain"
    return (
        f"{start}, a gain of {number(gain.mean, 2)}{PERCENT} "
        f"({interval}, {_count(found.pairs, 'paired seed')}, p {_equals(found.p)}{firm})."
    )


def _by_task(best: MethodResult | None) -> list[str]:
    if best is None:
        return []
    gains = {task: found.ne_gain for task, found in best.tasks.items() if found.ne_gain}
    means = {task: gain.mean for task, gain in gains.items() if gain.mean is not None}
    if len(means) < 2:
        return []
    most = max(means, key=means.__getitem__)
    said = []
    if means[most] > _NOTABLE:
        said.append(f"It gains most on {most} (NE {percent(means[most], 1)}{_doubt(gains[most])})")
    lost = sorted((task for task, gain in gains.items() if gain.worse), key=means.__getitem__)
    tested = any(gain.over_seeds.low is not None for gain in gains.values())
    if not tested:
        lost = sorted((task for task, mean in means.items() if mean < -_NOTABLE), key=means.__getitem__)
    if lost:
        items = [f"{task} ({percent(means[task], 1)})" for task in lost]
        said.append(f"{'loses' if said else 'It loses'} on {_listed(items)}")
    elif said:
        said.append("clearly loses on no task" if tested else "loses on no task")
    return [f"{' and '.join(said)}."] if said else []


def _others(analysis: Analysis, best: MethodResult) -> list[str]:
    """Every other joint method: better or worse than equal weights after Holm's adjustment, or neither."""
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    untested: list[str] = []
    for entry in analysis.joint:
        gain = entry.ne_gain
        if entry is best or gain is None or gain.mean is None:
            continue
        said = f"{entry.method.label} ({percent(gain.mean, 2)})"
        if gain.over_seeds.verdict == "untested":
            untested.append(said)
        elif gain.firm:
            (better if gain.better else worse).append(said)
        else:
            unclear.append(said)
    sentences = []
    if better:
        sentences.append(f"Also clearly better than equal weights: {_listed(better)}.")
    if worse:
        sentences.append(f"Clearly worse than equal weights: {_listed(worse)}.")
    if unclear:
        sentences.append(f"Not clearly different from equal weights: {_listed(unclear)}.")
    if untested:
        sentences.append(f"Not tested, with so few seeds: {_listed(untested)}.")
    return sentences


def _alone(analysis: Analysis, best: MethodResult) -> list[str]:
    alone = analysis.method(SINGLE_TASK)
    if alone is None or alone.ne is None or best.ne is None or alone.ne >= best.ne:
        return []
    return [
        f"One model per task does better still, mean NE {number(alone.ne, 4)}, at the price of "
        f"{len(analysis.tasks)} models."
    ]


def _costs(best: MethodResult) -> list[str]:
    if best.is_reference or best.speed is None:
        return []
    change = 100 * (best.speed.ratio - 1)
    pace = (
        "as fast as" if abs(change) < 0.5 else f"{abs(change):.1f}{PERCENT} {'faster' if change > 0 else 'slower'} than"
    )
    return [f"{best.method.label} trains {pace} equal weights."]


def _remedy(analysis: Analysis, task: str) -> str:
    """Which of the other joint methods help a suffering task, and how far."""
    cured, helped = [], []
    for entry in analysis.joint:
        gain, over_equal = entry.tasks[task].ne_transfer, entry.tasks[task].ne_gain
        if gain is None or gain.mean is None or over_equal is None:
            continue
        said = f"{entry.method.label} ({percent(gain.mean, 1)})"
        if not gain.worse:
            cured.append(said)
        elif over_equal.better:
            helped.append(said)
    parts = []
    if cured:
        parts.append(f"no longer worse than alone beyond the interval with {_listed(cured)}")
    if helped:
        parts.append(f"worse than alone, but less so, with {_listed(helped)}")
    return f"{task}: {'; '.join(parts)}." if parts else f"{task}: no other method helps."


def _doubt(gain: Gain) -> str:
    return ", not clear" if gain.over_seeds.verdict == "unclear" else ""


def _equals(p: float | None) -> str:
    said = p_value(p)
    return said if said.startswith("<") else f"= {said}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
