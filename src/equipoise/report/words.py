"""Sentences about negative transfer, and what to know before relying on a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from equipoise.comparison.results import EQUAL_WEIGHTS, SINGLE_TASK, LabelCount, PlannedMethod, PlannedRuns, Results
from equipoise.comparison.tuning import tasks_with_ne
from equipoise.report.analysis import FEW_POSITIVES, MIN_PAIRS, Analysis
from equipoise.report.cells import PERCENT, percent
from equipoise.report.diverged import DIVERGED_COUNTS
from equipoise.report.phrases import counted, is_or_are, listed
from equipoise.training import Run

__all__ = ["cautions", "natural_rate", "transfer_summary"]

_ENOUGH_SEEDS = 5  # what a caution about too few seeds proposes


def transfer_summary(analysis: Analysis) -> list[str]:
    """Say which tasks suffer under equal weights against training alone, and how each method changes that."""
    alone, equal = analysis.method(SINGLE_TASK), analysis.method(EQUAL_WEIGHTS)
    if alone is None or alone.ne is None:
        return ["Single-task training has no result here, so negative transfer cannot be told."]
    if equal is None or equal.ne is None:
        return ["Equal weights has no result here; the table shows the other methods against training alone."]
    gains = {
        task: gain
        for task, found in equal.tasks.items()
        if (gain := found.transfer.get("ne")) and task not in analysis.few
    }
    if all(gain.verdict == "untested" for gain in gains.values()):
        return [
            f"No task can be tested for negative transfer under equal weights: that takes {MIN_PAIRS} seeds and "
            f"{FEW_POSITIVES} test rows of both classes."
        ]
    sentences = []
    error = "NE or NSE" if analysis.regressions and analysis.error == "NE" else analysis.error
    suffering = [task for task, gain in gains.items() if gain.worse and gain.firm]
    gaining = [task for task, gain in gains.items() if gain.better and gain.firm]
    if suffering:
        said = listed([f"{task} ({percent(gains[task].mean, 1)})" for task in suffering])
        sentences.append(
            f"Under equal weights {said} {is_or_are(suffering)} worse in {error} than when trained alone, beyond "
            f"the 95{PERCENT} interval over seeds and after Holm's adjustment: negative transfer."
        )
    else:
        sentences.append(
            f"Under equal weights no task is worse in {error} than when trained alone, beyond the 95{PERCENT} "
            "interval over seeds and after Holm's adjustment."
        )
    if gaining:
        said = listed([f"{task} ({percent(gains[task].mean, 1)})" for task in gaining])
        sentences.append(f"Trained together, {said} {'gains' if len(gaining) == 1 else 'gain'}.")
    sentences += [_remedy(analysis, task) for task in suffering]
    return sentences


def natural_rate(plan: PlannedRuns) -> str:
    """Say what the metrics at the natural rate are, and which predictions could not be corrected for it."""
    found = plan.natural_rate
    begin = "The test rows were sampled, so that positives are more frequent than in life. "
    if found is None:
        return (
            f"{begin}Weights undo this for the labels: each row counts for as many as it stands for. The predictions "
            "stay those learned from the sample, because the data set does not say how it was drawn: NE and "
            "calibration at the natural rate then mean little."
        )
    said = (
        f"{begin}At the natural rate each row counts for as many as it stands for, and predictions are corrected in "
        f"closed form: of the rows without a positive of {found.task} a share of {found.rate:.4g} was kept."
    )
    if found.biased:
        said += f" Not corrected, because no output says how it occurs with {found.task}: {listed(found.biased)}."
    return said


def cautions(results: Results, analysis: Analysis) -> list[str]:
    """Return cautions that a reader needs before trusting the numbers."""
    plan, found = results.plan, []
    finished = len(results.runs)
    if finished < results.planned:
        found.append(
            f"Not finished: {finished} of {results.planned} runs are in; this page shows what there is. "
            "Run the same command again to go on."
        )
    elif not results.throughput:
        found.append("Speed and memory have not been measured: run the same command again to go on.")
    if len(plan.seeds) < MIN_PAIRS:
        found.append(
            f"{counted(len(plan.seeds), 'seed')} only: differences may be chance, and no gain is claimed. Run the same "
            f"command with --seeds {_ENOUGH_SEEDS}; the runs that are done are kept."
        )
    found += _few_positives(results, analysis)
    if analysis.busy:
        found.append(
            "The machine was too busy to measure speed well: two identical learners seemed to differ by 10 % or more. "
            "Only larger differences are shown. For better ones remove throughput.json and run the same command again "
            "on a quiet machine."
        )
    diverged = [entry for entry in analysis.methods if entry.diverged]
    if diverged:
        said = listed([f"{entry.method.label} ({counted(entry.diverged, 'seed')})" for entry in diverged])
        found.append(f"Diverged: {said}. {DIVERGED_COUNTS}.")
    found += _without_static_weights(analysis)
    found += [_not_finite(method, runs) for method in plan.methods if (runs := _with_bad_steps(results, method.name))]
    if analysis.unscored:
        found.append(
            f"Not scored: {listed(list(analysis.unscored))}. The test rows hold one class only, so that "
            "neither AUC nor NE is defined; no mean includes it."
        )
    reasons = sorted({run.irreproducible for run in results.runs} - {""})
    found += [f"A second run may differ in the last digits: {reason}." for reason in reasons]
    found += _tuning_gaps(results)
    edge = [method.label for method in plan.methods if results.at_edge(method.name)]
    if edge:
        found.append(
            f"Learning rate or table decay at the edge of the grid: {listed(edge)}. A better one may lie outside."
        )
    found += _doubtful_rates(results)
    return found


def _without_static_weights(analysis: Analysis) -> list[str]:
    """Say that fixed weights are missing, which are the cheapest alternative to any balancing method."""
    if len(analysis.joint) < 2 or any(entry.is_static for entry in analysis.joint):
        return []
    return ["No fixed static weights in this table: a few weights tried on validation data may gain as much."]


def _with_bad_steps(results: Results, method: str) -> list[Run]:
    return [run for run in results.runs if run.method == method and run.status == "ok" and run.non_finite]


def _not_finite(method: PlannedMethod, runs: Sequence[Run]) -> str:
    counts: Counter[str] = Counter()
    for run in runs:
        counts.update(run.non_finite)
    skipped = sum(run.skipped_steps for run in runs)
    how = f"{counted(skipped, 'step')} left out whole" if skipped else "the task left out of those steps"
    steps = listed([f"{task} in {counted(times, 'step')}" for task, times in counts.items()])
    return (
        f"{method.label} met losses or gradients that were not finite, {steps} of {counted(len(runs), 'seed')}: {how}."
    )


def _few_positives(results: Results, analysis: Analysis) -> list[str]:
    """Return tasks whose metrics rest on few rows of one class, with split and count."""
    consequences = {
        "validation": "Their learning curves are mostly chance"
        + (", and so is what they added to the choice of rates." if results.tuning else "."),
        "test": "They are in no mean over tasks, and rank no method."
        if analysis.ranks
        else "No method is ranked on this data.",
    }
    found = []
    for split, consequence in consequences.items():
        few = [
            f"{task} ({_rarer(count)})"
            for task, count in results.plan.label_counts.get(split, {}).items()
            if 0 < count.scarcest < FEW_POSITIVES
        ]
        if few:
            found.append(f"Tasks with few labels of one class among the {split} rows: {listed(few)}. {consequence}")
    return found


def _rarer(count: LabelCount) -> str:
    if count.positives is None:
        return counted(count.labelled, "row")
    kind = "positive" if count.positives <= count.labelled - count.positives else "negative"
    return f"{counted(count.scarcest, kind)} of {count.labelled:,}"


def _doubtful_rates(results: Results) -> list[str]:
    """Return rates that were not tuned under the recipe of this comparison."""
    plan = results.plan
    by_doubt: dict[str, list[str]] = {}
    for method in plan.methods:
        if method.name in plan.rate_doubts:
            by_doubt.setdefault(plan.rate_doubts[method.name], []).append(method.label)
    advice = "Methods differ in the rate that suits them: add --tune for a fair comparison."
    if by_doubt:
        said = "; ".join(f"{listed(labels)} ({doubt})" for doubt, labels in by_doubt.items())
        return [f"Learning rates that may not suit: {said}. {advice}"]
    if plan.grid is None and len({plan.rate(method.name) for method in plan.methods}) == 1 and len(plan.methods) > 1:
        return [f"Every method ran at the same learning rate. {advice}"]
    return []


def _tuning_gaps(results: Results) -> list[str]:
    """Return tasks that had no part in the choice of rates, and methods for which no rate worked."""
    found = []
    ended_well = [run for run in results.tuning if run.status == "ok"]
    left_out = [task for task in results.plan.tasks if task not in tasks_with_ne(results.tuning)]
    if ended_well and left_out:
        found.append(
            f"Rates were chosen without {listed(left_out)}: the validation rows hold one class only (or one target), "
            "so that NE is not defined there."
        )
    diverged = [
        method.label
        for method in results.plan.methods
        if any(run.method == method.name for run in results.tuning)
        and not any(run.method == method.name for run in ended_well)
    ]
    if diverged:
        found.append(f"Diverged at every rate of the grid: {listed(diverged)}. Try lower rates.")
    return found


def _remedy(analysis: Analysis, task: str) -> str:
    """Say which other joint methods help a suffering task, and how far."""
    cured, helped = [], []
    for entry in analysis.joint:
        gain, over_equal = entry.tasks[task].transfer.get("ne"), entry.tasks[task].gains.get("ne")
        if gain is None or gain.mean is None or over_equal is None:
            continue
        said = f"{entry.method.label} ({percent(gain.mean, 1)})"
        if not gain.worse:
            cured.append(said)
        elif over_equal.better and over_equal.firm:
            helped.append(said)
    parts = []
    if cured:
        parts.append(f"no longer worse than alone beyond the interval with {listed(cured)}")
    if helped:
        parts.append(f"worse than alone, but less so, with {listed(helped)}")
    return f"{task}: {'; '.join(parts)}." if parts else f"{task}: no other method helps."
