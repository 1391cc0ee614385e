"""Runs that diverged, counted against their method instead of left out of its means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

from equipoise.comparison.results import Results
from equipoise.training import Run

__all__ = ["DIVERGED_COUNTS", "with_diverged_counted"]

DIVERGED_COUNTS: Final = (
    "A run that diverged counts in its seed as a model without skill (NE 1, AUC 0.5), or as the worst other run of "
    "that seed where that is worse"
)
"""The rule in words, without its full stop."""

_NO_SKILL: Final = {"ne": 1.0, "auc": 0.5, "gauc": 0.5, "r2": 0.0}
_WORSE: Final[dict[str, Callable[[list[float]], float]]] = {
    "ne": max, "log_loss": max, "rmse": max, "mae": max, "auc": min, "gauc": min, "r2": min,
}  # fmt: skip


def with_diverged_counted(results: Results, /) -> Results:
    """Return results in which each run that diverged has the metrics of a model without skill, and ended well.

    In each task NE is 1, AUC 0.5, R² 0; log loss is that of NE 1; RMSE and MAE are the worst of the other runs of that
    seed. Where one of these runs is worse still, its metric counts. Calibration stays undefined. Its groups of users
    have the losses of the base rate, times that NE. Without this a method
    would look better for each bad seed on which it diverges.

    Without a run that ended well nothing is changed.
    """
    ok = [run for run in results.runs if run.status == "ok"]
    if not ok or len(ok) == len(results.runs):
        return results
    runs = tuple(
        run if run.status == "ok" else _without_skill(run, [other for other in ok if other.seed == run.seed] or ok)
        for run in results.runs
    )
    return replace(results, runs=runs)


def _without_skill(run: Run, others: Sequence[Run]) -> Run:
    return replace(
        run,
        status="ok",
        test=_worst(others, "test"),
        test_natural=_worst(others, "test_natural"),
        validation=_worst(others, "validation"),
        random_groups=_groups_without_skill(others),
    )


def _groups_without_skill(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """Return the sums of the base rate's predictions, times the NE that counts; empty where the runs hold none."""
    found = {}
    counted = _worst(runs, "test")
    for task, sums in runs[0].random_groups.items():
        weight, positives = math.fsum(sums["weight"]), math.fsum(sums["positives"])
        rate = positives / weight if weight else 0.0
        if not 0 < rate < 1:
            continue
        ne = counted[task]["ne"]
        loss = [
            -ne * (positive * math.log(rate) + (rows - positive) * math.log(1 - rate))
            for rows, positive in zip(sums["weight"], sums["positives"], strict=True)
        ]
        found[task] = {"loss": loss, "weight": sums["weight"], "positives": sums["positives"]}
    return found


def _worst(runs: Sequence[Run], split: Literal["test", "test_natural", "validation"]) -> dict[str, dict[str, float]]:
    """Return task to metrics: no skill, or the worst of the runs."""
    metrics = [getattr(run, split) for run in runs]
    tasks = {task: None for of_run in metrics for task in of_run}
    return {task: _worst_of([of_run[task] for of_run in metrics if task in of_run]) for task in tasks}


def _worst_of(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    found = {}
    for name in metrics[0]:
        values = [value for of_run in metrics if math.isfinite(value := of_run.get(name, math.nan))]
        if not values or name not in _WORSE:
            found[name] = math.nan
            continue
        no_skill = _log_loss_of_base_rate(metrics) if name == "log_loss" else _NO_SKILL.get(name)
        found[name] = _WORSE[name](values if no_skill is None else [*values, no_skill])
    return found


def _log_loss_of_base_rate(metrics: Sequence[dict[str, float]]) -> float | None:
    """Return log loss over NE, which is the entropy of the base rate, the same for all runs."""
    ratios = (of_run["log_loss"] / of_run["ne"] for of_run in metrics if of_run.get("ne", 0) > 0)
    return next((ratio for ratio in ratios if math.isfinite(ratio)), None)
