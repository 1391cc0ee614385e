"""Warnings that a reader of a suite needs before trusting its numbers."""

from __future__ import annotations

from equipoise.report.analysis import MIN_PAIRS
from equipoise.report.diverged import DIVERGED_COUNTS
from equipoise.report.evidence.overall import Overall
from equipoise.report.evidence.suite import Setting, Suite
from equipoise.report.phrases import counted, first_listed, listed

__all__ = ["suite_cautions"]


def suite_cautions(suite: Suite, overall: Overall) -> list[str]:
    """Return what is missing, busy, untuned or generated, each in a sentence."""
    found = []
    if suite.not_begun:
        found.append(f"Not begun: {first_listed(suite.not_begun)}.")
    unfinished = [
        f"{setting.title} ({len(setting.results.runs)} of {counted(setting.results.planned, 'run')})"
        for setting in suite.settings
        if not setting.finished
    ]
    if unfinished:
        found.append(f"Not finished: {first_listed(unfinished)}. Ranks and means over settings leave them out.")
    without_rank = [
        f"{setting.title} (every task has too few test rows of one class)"
        if not setting.analysis.ranks
        else f"{setting.title} (no results of equal weights and another method)"
        for setting in suite.settings
        if setting.finished and not setting.has_gains
    ]
    if without_rank:
        found.append(f"No method is ranked in {listed(without_rank)}.")
    found += _unranked(suite, overall)
    seeds = {setting.title: len(setting.results.plan.seeds) for setting in suite.settings}
    few = [f"{title} ({counted(count, 'seed')})" for title, count in seeds.items() if count < MIN_PAIRS]
    if few:
        found.append(f"Too few seeds to claim a gain: {listed(few)}.")
    diverged = [f"{m.label} ({m.diverged} of {m.runs})" for m in overall.methods if m.diverged]
    if diverged:
        found.append(f"Diverged: {listed(diverged)}. {DIVERGED_COUNTS}.")
    of = {
        "No fixed static weights": [s.title for s in suite.settings if not any(e.is_static for e in s.analysis.joint)],
        "Rates not tuned": [s.title for s in suite.settings if not s.results.tuning],
        "Speed not measured": [s.title for s in suite.settings if not s.results.throughput],
        "Machine too busy to measure speed": [s.title for s in suite.settings if s.analysis.busy],
        "Generated data, on which nobody acted": [s.title for s in suite.settings if s.results.plan.generated],
        "Methods with a learning rate or table decay at the edge of the grid": [
            f"{s.title} ({edge} of {len(s.results.plan.methods)})"
            for s in suite.settings
            if (edge := sum(s.results.at_edge(m.name) for m in s.results.plan.methods))
        ],
    }
    every = len(suite.settings)
    found += [
        f"{what}: {'every setting' if len(titles) == every > 1 else first_listed(titles)}."
        for what, titles in of.items()
        if titles
    ]
    data_sets = {setting.results.plan.dataset for setting in overall.ranked}
    if overall.ranks and 1 < len(overall.ranked) != len(data_sets):
        found.append(
            f"The {len(overall.ranked)} ranked settings are on {counted(len(data_sets), 'data set')}: settings on the "
            "same data are not independent, as the Friedman test supposes."
        )
    return found


def _unranked(suite: Suite, overall: Overall) -> list[str]:
    """Name the settings that ranks leave out for want of methods, and the methods that a ranked setting lacks."""
    found = []
    others = [s.title for s in suite.settings if s.finished and s.has_gains and s not in overall.ranked]
    if others:
        found.append(f"Ranks and means over settings leave out {listed(others)}, where other methods were compared.")
    joint = [method for method in overall.methods if method.is_joint and method.rank is None]
    absent = {method.label: sum(not _has_result(s, method.name) for s in overall.ranked) for method in joint}
    unranked = sorted((label for label, count in absent.items() if count), key=absent.__getitem__)
    if unranked:
        over = counted(len(overall.ranked), "ranked setting")
        found.append(f"Without a rank, because results are missing in some of the {over}: {first_listed(unranked)}.")
    return found


def _has_result(setting: Setting, name: str) -> bool:
    """Return whether a method has a mean error in a setting."""
    entry = setting.analysis.method(name)
    return entry is not None and entry.ne is not None
