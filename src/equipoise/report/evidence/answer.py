"""The evidence page's answer in sentences, which claim only what the intervals support."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.comparison.results import EQUAL_WEIGHTS
from equipoise.report.analysis import FEW_POSITIVES, MIN_PAIRS, Gain
from equipoise.report.cells import PERCENT, between, number, percent, signed
from equipoise.report.evidence.duel import duels, outcome_of, static_duels
from equipoise.report.evidence.overall import MethodOverall, Overall, TaskChange
from equipoise.report.evidence.sensitivity import average_spreads
from equipoise.report.evidence.suite import Setting, Suite
from equipoise.report.phrases import counted, equals, first_listed, is_or_are, listed

__all__ = ["answer", "tasks_of_setting"]


def answer(suite: Suite, overall: Overall) -> list[str]:
    """Return the outcome of a suite: does balancing pay, where, for which task, at what cost, and is a row better.

    Everything called clear needs three paired seeds, a 95 % interval that excludes zero, and Holm's adjustment.
    """
    focus = overall.focus
    if focus is None and any(s.analysis.tasks and not s.analysis.ranks for s in suite.settings):
        return [
            f"No setting has a task with {FEW_POSITIVES} test rows of each class or more, so nothing is said about any "
            "method."
        ]
    if focus is None:
        return [
            "No setting has results of equal weights and of a balancing method yet, so there is nothing to compare."
        ]
    if all(gain.verdict == "untested" for gain in focus.gains.values()):
        return [f"Too few seeds to say whether balancing pays: at least {MIN_PAIRS} are needed in a setting."]
    return [
        _does_it_pay(suite, focus),
        *_with_users(suite, focus),
        *_which_tasks(focus),
        *_at_what_cost(suite, focus),
        *_how_much_tuning(suite, overall, focus),
        *_is_a_row_better(suite, overall, focus),
        *_static_weights(suite, focus),
        *_others(overall, focus),
    ]


def _does_it_pay(suite: Suite, focus: MethodOverall) -> str:
    titles = _titles(suite)
    better = {titles[name]: gain for name, gain in focus.gains.items() if gain.firm and gain.better}
    worse = {titles[name]: gain for name, gain in focus.gains.items() if gain.firm and gain.worse}
    of = counted(len(focus.gains), "setting")
    if not better and not worse:
        return f"{focus.label} is clearly better than equal weights in none of {of}, and clearly worse in none."
    losses = f"clearly worse in {_with_gains(worse)}" if worse else "clearly worse in none"
    if not better:
        return f"{focus.label} does not pay here: of {of} it is clearly better than equal weights in none, {losses}."
    return (
        f"{focus.label} is clearly better than equal weights in {len(better)} of {of}: {_with_gains(better)}; it is "
        f"{losses}."
    )


def _with_gains(gains: dict[str, Gain]) -> str:
    by_size = sorted(gains.items(), key=lambda entry: -abs(entry[1].mean or 0.0))
    return first_listed(
        [f"{title} (NE {percent(gain.mean, 2)}, {between(gain.over_seeds, 2, PERCENT)})" for title, gain in by_size]
    )


def _titles(suite: Suite) -> dict[str, str]:
    return {setting.name: setting.title for setting in suite.settings}


def _with_users(suite: Suite, focus: MethodOverall) -> list[str]:
    """Say whether clear gains stay clear when users are drawn anew as well."""
    clear = [s for s in suite.settings if (gain := focus.gains.get(s.name)) and gain.firm and gain.better]
    found = {s.title: s.gains_over_users[focus.name] for s in clear if focus.name in s.gains_over_users}
    without = [s.title for s in clear if s.title not in found]
    stays = [title for title, over_users in found.items() if over_users.low > 0]
    goes = [
        f"{title} ({between(over_users, 2)}{PERCENT})" for title, over_users in found.items() if over_users.low <= 0
    ]
    said = []
    if stays:
        said.append(
            f"With users drawn anew as well as seeds, the interval still excludes zero in {first_listed(stays)}."
        )
    if goes:
        said.append(f"With users drawn anew as well as seeds, the interval includes zero in {first_listed(goes)}.")
    if without:
        said.append(
            f"Intervals cover seeds alone, because the runs hold no groups of users, in {first_listed(without)}."
        )
    return said


def _which_tasks(focus: MethodOverall) -> list[str]:
    tested = counted(focus.tasks, "task")
    if not focus.tasks:
        return []
    if not focus.tasks_better and not focus.tasks_worse:
        return [f"Of {tested} over all settings none is clearly better or worse, once p is adjusted for their number."]
    of = f"Of {tested} over all settings"
    gained = (
        f"{focus.label} clearly gains on {_named(focus.tasks_better)}" if focus.tasks_better else "none clearly gains"
    )
    lost = f"It clearly loses on {_named(focus.tasks_worse)}" if focus.tasks_worse else "None clearly loses"
    return [f"{of} {gained}.", f"{lost}."]


def _named(changes: Sequence[TaskChange]) -> str:
    """Return tasks with settings, gains and positive test rows; a task of several settings once."""
    by_task: dict[str, list[TaskChange]] = {}
    for change in sorted(changes, key=lambda change: -abs(change.gain.mean or 0.0)):
        by_task.setdefault(change.task, []).append(change)
    return first_listed([_task(task, found) for task, found in by_task.items()])


def _task(task: str, changes: Sequence[TaskChange]) -> str:
    if len(changes) == 1:
        return f"{task} ({changes[0].setting}: {_size(changes[0])})"
    means = sorted(change.gain.mean or 0.0 for change in changes)
    positives = sorted({change.positives for change in changes if change.positives is not None})
    rows = ""
    if positives:
        ends = f"{positives[0]:,}" if len(positives) == 1 else f"{positives[0]:,} to {positives[-1]:,}"
        rows = f", {ends} positive test rows"
    return f"{task} in {len(changes)} settings (NE {signed(means[0], 1)} to {percent(means[-1], 1)}{rows})"


def _size(change: TaskChange) -> str:
    rows = "" if change.positives is None else f", {change.positives:,} positive test rows"
    return f"NE {percent(change.gain.mean, 1)}{rows}"


def tasks_of_setting(setting: Setting, focus: MethodOverall | None) -> str:
    """Say which tasks of one setting clearly gain and lose with the method that the page is about."""
    if focus is None or setting.name not in focus.gains:
        return ""
    gained, lost = (
        [change for change in changes if change.setting == setting.title]
        for changes in (focus.tasks_better, focus.tasks_worse)
    )
    if not gained and not lost:
        return f"With {focus.label} no single task is clearly better or worse than with equal weights."
    said = [
        f"{verb} on {listed([f'{change.task} ({_size(change)})' for change in changes])}."
        for verb, changes in (("gains", gained), ("loses", lost))
        if changes
    ]
    return f"{focus.label} {' It '.join(said)}"


def _at_what_cost(suite: Suite, focus: MethodOverall) -> list[str]:
    """Say how fast it trains; a setting whose interval does not allow it is counted as not clear."""
    entries = [entry for setting in suite.settings if (entry := setting.analysis.method(focus.name)) and entry.speed]
    if not entries:
        return []  # the cautions name the settings without speeds
    said = []
    for verdict in ("slower", "faster"):
        ratios = [entry.speed.ratio for entry in entries if entry.speed and entry.speed_verdict == verdict]
        if ratios:
            ends = " to ".join(dict.fromkeys([f"{min(ratios):.2f}", f"{max(ratios):.2f}"]))
            said.append(f"{verdict} than equal weights in {counted(len(ratios), 'setting')} (QPS ratio {ends})")
    same = sum(entry.speed_verdict == "same" for entry in entries)
    unclear = sum(entry.speed_verdict == "unclear" for entry in entries)
    if same:
        said.append(f"as fast, within 5{PERCENT}, in {counted(same, 'setting')}")
    if unclear:
        said.append(f"neither clearly faster nor slower in {counted(unclear, 'setting')}")
    return [f"It trains {listed(said)}."]


def _how_much_tuning(suite: Suite, overall: Overall, focus: MethodOverall) -> list[str]:
    """Say how far the median trial is from the best one, and which method has the smallest spread."""
    spreads = average_spreads(suite.settings)
    joint = {method.name: method.label for method in overall.methods if method.name in spreads and method.is_joint}
    if focus.name not in joint or len(joint) < 2:
        return []
    least = min(joint, key=spreads.__getitem__)
    named = dict.fromkeys(name for name in (least, focus.name, EQUAL_WEIGHTS) if name in joint)
    found = [f"{joint[name]} {number(spreads[name], 1)}{PERCENT}" for name in named]
    found[0] += f", the least of {counted(len(joint), 'method')}"
    return [
        "The validation NE of the median trial lies above that of the best one, on average over the tuned settings, "
        f"by: {'; '.join(found)}."
    ]


def _is_a_row_better(suite: Suite, overall: Overall, focus: MethodOverall) -> list[str]:
    ranks = overall.ranks
    if ranks is None or focus.rank is None:
        return []
    over = f"over {counted(ranks.data_sets, 'setting')} and {counted(len(ranks.average), 'method')}"
    before = [method for method in overall.methods if method.rank is not None and method.rank < focus.rank]
    if not before:
        first = f"By average rank {over} no row is better than {focus.label} ({number(focus.rank, 2)})."
    else:
        named = [f"{method.label} ({number(method.rank, 2)})" for method in before]
        first = (
            f"By average rank {over} {listed(named)} {is_or_are(named)} before {focus.label} ({number(focus.rank, 2)})."
        )
    directly = [_directly(suite, method, focus) for method in before if not method.is_reference]
    if ranks.critical_difference is None:
        return [first, *directly]
    distance = ranks.critical_difference
    clear = [method.label for method in before if focus.rank - (method.rank or 0.0) > distance]
    said = [first]
    if before:
        which = f"{listed(clear)} {is_or_are(clear)}" if clear else "None of these is"
        said.append(f"{which} before it by more than the critical difference of {number(distance, 2)}.")
    said += directly
    if ranks.p is not None:
        verdict = "are not all alike" if ranks.p < 0.05 else "cannot be told apart as a whole"
        said.append(f"The methods' ranks {verdict} (Friedman test, p {equals(ranks.p)}).")
    return said


def _directly(suite: Suite, method: MethodOverall, focus: MethodOverall) -> str:
    """Say how a row that ranks before the method does against it, setting by setting."""
    found = duels(suite, method.name, lambda entry: entry.method.name == focus.name)
    better, unclear, worse = outcome_of(found)
    return (
        f"Setting by setting, {method.label} is clearly better than {focus.label} in {better} of {len(found)}, clearly "
        f"worse in {worse}, and not clearly different in {unclear}."
    )


def _static_weights(suite: Suite, focus: MethodOverall) -> list[str]:
    """Say what static weights reached, and how one training of the method compares with them."""
    found = static_duels(suite, focus.name)
    if not found:
        return ["No setting has fixed static weights, the cheapest alternative to balancing."]
    gains = [duel.opponent.ne_gain for duel in found if duel.opponent.ne_gain]
    clear = sum(gain.firm and gain.better for gain in gains)
    trials = sorted({duel.trials for duel in found})
    searched = "given beforehand" if trials[-1] == 0 else f"searched in {_from_to(trials)} trainings"
    better, unclear, worse = outcome_of(found)
    return [
        f"Static weights, {searched}, are clearly better than equal weights in {clear} of "
        f"{counted(len(found), 'setting')}. One training with {focus.label} is clearly better than they are in "
        f"{better}, clearly worse in {worse}, and not clearly different in {unclear}."
    ]


def _from_to(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _others(overall: Overall, focus: MethodOverall) -> list[str]:
    """Name the other methods by their clear wins and losses, those with the most first."""
    counts = {
        method.label: (method.counts(firm=True), len(method.gains))
        for method in overall.methods
        if method.gains and method.is_joint and method is not focus
    }
    wins = [label for label, ((better, _, _), _) in counts.items() if better]
    losses = [label for label, ((better, _, worse), _) in counts.items() if worse and not better]
    wins.sort(key=lambda label: (counts[label][0][2] - counts[label][0][0], label))
    losses.sort(key=lambda label: (-counts[label][0][2], label))
    said = []
    if wins:
        named = [_wins(label, *counts[label]) for label in wins]
        said.append(f"Also clearly better than equal weights in some setting: {first_listed(named)}.")
    if losses:
        named = [f"{label} ({counts[label][0][2]} of {counts[label][1]})" for label in losses]
        said.append(f"Clearly worse in some setting and better in none: {first_listed(named)}.")
    return said


def _wins(label: str, counts: tuple[int, int, int], settings: int) -> str:
    better, _, worse = counts
    return f"{label} ({better} of {settings}{f', worse in {worse}' if worse else ''})"
