"""Chooses each method's learning rate and table decay on validation data, from the runs of tuning."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from equipoise.comparison.tuned_rates import Rate, rate_of, rates_by_model
from equipoise.errors import SettingError
from equipoise.training import Run

__all__ = ["best_rates", "choose_rates", "mean_ne", "scores_of", "tasks_with_ne"]


def tasks_with_ne(runs: Iterable[Run], /) -> tuple[str, ...]:
    """Return the tasks whose validation NE is defined in every run that ended well.

    NE is not defined for a task whose validation rows hold one class only. Means are compared over the same tasks for
    all methods, rates and seeds, so a task that lacks a value anywhere is in none of them.

    Example:
        >>> one = Run("equal", 0, 1e-3, validation={"click": {"ne": 0.9}, "buy": {"ne": math.nan}})
        >>> tasks_with_ne([one, Run("equal", 0, 1.0, status="diverged")])
        ('click',)
    """
    ended_well = [run for run in runs if run.status == "ok"]
    return tuple(
        task
        for task in (ended_well[0].validation if ended_well else ())
        if all(math.isfinite(run.validation.get(task, {}).get("ne", math.nan)) for run in ended_well)
    )


def mean_ne(runs: Sequence[Run], tasks: Sequence[str], /) -> float | None:
    """Return the mean validation NE over runs and tasks: infinite if a run diverged, None without a run or a task.

    Example:
        >>> mean_ne([Run("equal", 0, 1e-3, validation={"click": {"ne": 0.75}})], ["click"])
        0.75
    """
    if any(run.status == "diverged" for run in runs):
        return math.inf
    values = [run.validation[task]["ne"] for run in runs for task in tasks]
    return math.fsum(values) / len(values) if values else None


def scores_of(runs: Sequence[Run], method: str, /) -> dict[Rate, float | None]:
    """Return the mean validation NE of a method at each rate, over the tasks that have one in all ``runs``.

    Example:
        >>> runs = [Run("equal", 1, 1e-3, validation={"click": {"ne": 0.75}}), Run("equal", 1, 1.0, status="diverged")]
        >>> scores_of(runs, "equal")
        {Rate(lr=0.001, table_decay=0.0, options=''): 0.75, Rate(lr=1.0, table_decay=0.0, options=''): inf}
    """
    tasks = tasks_with_ne(runs)
    tried: dict[Rate, list[Run]] = {}
    for run in runs:
        if run.method == method:
            tried.setdefault(rate_of(run), []).append(run)
    return {rate: mean_ne(of_rate, tasks) for rate, of_rate in sorted(tried.items())}


def best_rates(runs: Sequence[Run], method: str, count: int, /) -> list[Rate]:
    """Return up to so many rates of a method with the lowest mean validation NE, the lowest first; none that diverged.

    Example:
        >>> good, bad = {"click": {"ne": 0.7}}, {"click": {"ne": 0.8}}
        >>> runs = [Run("equal", 0, 1e-3, validation=bad), Run("equal", 0, 1e-2, validation=good)]
        >>> [rate.lr for rate in best_rates(runs, "equal", 3)]
        [0.01, 0.001]
    """
    scores = {rate: score for rate, score in scores_of(runs, method).items() if score is not None and score < math.inf}
    return sorted(scores, key=scores.__getitem__)[:count]


def choose_rates(runs: Sequence[Run], /, *, apart: Collection[str] = ()) -> dict[str, Rate]:
    """Return each method's rate: that with the lowest mean validation NE, the lowest rate where all diverged.

    Rates that were tried with fewer seeds than others of the same method are not chosen.

    Args:
        runs: those of tuning.
        apart: the methods that train a model per task. Each of these models gets the rate with its own lowest NE, by
            the option ``rates`` and ``decays`` of the method.

    Raises:
        SettingError: no task's NE is defined on the validation rows.

    Example:
        >>> good, bad = {"click": {"ne": 0.7}}, {"click": {"ne": 0.8}}
        >>> choose_rates([Run("equal", 0, 1e-3, validation=bad), Run("equal", 0, 1e-2, validation=good)])
        {'equal': Rate(lr=0.01, table_decay=0.0, options='')}
    """
    tasks = tasks_with_ne(runs)
    if not tasks and any(run.status == "ok" for run in runs):
        names = ", ".join(next(run.validation for run in runs if run.status == "ok"))
        raise SettingError(
            f"Rates cannot be chosen: NE is not defined on the validation rows for any task ({names}). Each task needs "
            "a positive and a negative label there: use more rows, or give the rates with --rate instead of --tune."
        )
    chosen = {}
    for method in dict.fromkeys(run.method for run in runs):
        scores = scores_of(runs, method)
        seeds = {
            rate: len({run.seed for run in runs if (run.method, rate_of(run)) == (method, rate)}) for rate in scores
        }
        most = max(seeds.values())
        chosen[method] = _lowest({rate: score for rate, score in scores.items() if seeds[rate] == most})
        if method in apart and len(tasks) > 1 and not chosen[method].options:
            own = [run for run in runs if run.method == method and run.status == "ok"]
            chosen[method] = chosen[method]._replace(options=_rates_of_models(own, chosen[method]))
    return chosen


def _lowest(scores: Mapping[Rate, float | None]) -> Rate:
    return min(scores, key=lambda rate: math.inf if (score := scores[rate]) is None else score)


def _rates_of_models(runs: Sequence[Run], others: Rate) -> str:
    """Return the options with the best rate of each task's own model; ``others`` where a task has no NE."""
    if not runs:
        return ""
    tasks = list(runs[0].validation)
    best = {}
    for task in tasks:
        scores: dict[Rate, list[float]] = {}
        for run in runs:
            scores.setdefault(rate_of(run), []).append(run.validation[task]["ne"])
        means = {rate: math.fsum(values) / len(values) for rate, values in scores.items()}
        defined = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
        best[task] = min(defined, key=defined.__getitem__) if defined else others
    return rates_by_model(best, tasks)
