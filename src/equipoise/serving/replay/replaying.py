"""Replay rankers on a log: what the reward would have been had they chosen the items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from equipoise.errors import DataError, SettingError
from equipoise.serving.replay.estimators import (
    ESTIMATORS,
    Floats,
    Interval,
    PolicyRounds,
    interval_of_draws,
    logged_value,
    resampled_sums,
)
from equipoise.serving.replay.log import BanditLog
from equipoise.serving.replay.policies import RankingPolicy
from equipoise.serving.replay.reward_model import RewardModel

__all__ = ["Estimate", "RankedSide", "Replay", "Replayed", "RowScorer", "replay"]

_CANDIDATES: Final = 1 << 16  # rows that are scored at once


class RowScorer(Protocol):
    """A trained ranker, such as :class:`equipoise.serving.Ranker`."""

    @property
    def schema(self) -> Any:
        """The schema, which tells binary tasks from regressions."""

    @property
    def columns(self) -> Sequence[str]:
        """The raw columns that :meth:`predict` reads."""

    def predict(self, table: Any, /) -> pl.DataFrame:
        """Return the predictions for raw rows, one column per task."""


@dataclass(frozen=True)
class RankedSide:
    """Trainings of one kind that are replayed together: their estimates are averaged.

    Attributes:
        label: the name for readers.
        rankers: by the seed of the training.
    """

    label: str
    rankers: Mapping[int, RowScorer]


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95 % interval over units, and its value for each seed.

    Attributes:
        value: the mean over the seeds.
        interval: by the bootstrap over units; None where resamples do not differ or are not defined.
    """

    value: float
    interval: Interval | None
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Replayed:
    """One side's estimates.

    Attributes:
        value: by the name of the estimator.
        over_logged: the same minus the logging policy's own rate.
        effective: the effective number of rounds, mean over seeds.
        matched: rounds whose logged item the policy can show, mean over seeds.
        rewarded: those of them with a reward, the fewest of any seed.
        largest: the largest weight of any seed.
        mean_weight: 1 in expectation where propensities are right and cover the policy.
    """

    label: str
    value: Mapping[str, Estimate]
    over_logged: Mapping[str, Estimate]
    effective: float
    matched: float
    rewarded: int
    largest: float
    mean_weight: Estimate


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
        rounds, units, items, positions: their numbers.
        is_rate: all rewards are 0 or 1, so that their mean is a rate.
        logged: the logging policy's own mean reward.
        sides: one or two.
        difference: the second side minus the first, paired; empty with one side.
        context, item_columns: the columns that rankers read from the log, and from the item table.
    """

    rounds: int
    units: int
    items: int
    positions: int
    is_rate: bool
    policy: RankingPolicy
    draws: int
    logged: Estimate
    sides: Sequence[Replayed]
    difference: Mapping[str, Estimate]
    context: Sequence[str]
    item_columns: Sequence[str]


def replay(
    sides: Sequence[RankedSide],
    log: BanditLog,
    /,
    *,
    tasks: str | Mapping[str, str],
    policy: RankingPolicy | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Replay:
    """Estimate the mean reward had rankers chosen the items of logged rounds, which they must not have learnt from.

    Every item of the log's item table is a candidate in every round. A score is a binary task's log-odds, or a
    regression's prediction. Intervals are percentiles of a bootstrap over the log's units, the same draws for all.

    Args:
        sides: one or two; a side with several seeds is the mean of them.
        tasks: the task that ranks, or one for each position.
        policy: None: the best item alone.
        draws: resamples of the bootstrap.

    Raises:
        SettingError: a task does not exist, or a ranker reads nothing of the item table.
        DataError: the log lacks a column, or a ranker never picks the logged item.
    """
    policy = policy or RankingPolicy()
    by_position = [tasks if isinstance(tasks, str) else _task_at(tasks, name) for name in log.positions]
    model = RewardModel.fit(log.reward, log.action, log.position, log.unit, items=log.items.height)
    rounds = {
        (place, number): _rounds(side.label, ranker, log=log, by_position=by_position, policy=policy, model=model)
        for place, side in enumerate(sides)
        for number, ranker in side.rankers.items()
    }
    own = np.stack([np.ones(len(log)), log.reward], axis=1)
    draw = resampled_sums(
        np.concatenate([own, *(entry.sums() for entry in rounds.values())], axis=1), log.unit, draws=draws, seed=seed
    )
    own_draws = logged_value(draw[:, :2])
    logged = float(logged_value(own.sum(0)))
    values: dict[tuple[int, int], Mapping[str, Floats]] = {}  # side and seed -> name -> value, then the draws
    for start, (key, entry) in zip(range(2, draw.shape[1], 4), rounds.items(), strict=True):
        totals = np.concatenate([entry.sums().sum(0)[None], draw[:, start : start + 4]])
        values[key] = {**entry.estimates(totals), "weight": totals[:, 1] / totals[:, 0]}

    def of_side(place: int, name: str) -> dict[int, Floats]:
        return {number: found[name] for (side, number), found in values.items() if side == place}

    replayed = []
    for place, side in enumerate(sides):
        here = [entry for (number, _), entry in rounds.items() if number == place]
        replayed.append(
            Replayed(
                side.label,
                {name: _estimate(of_side(place, name)) for name in ESTIMATORS},
                {name: _estimate(of_side(place, name), np.concatenate([[logged], own_draws])) for name in ESTIMATORS},
                float(np.mean([entry.effective for entry in here])),
                float(np.mean([entry.matched for entry in here])),
                min(entry.rewarded for entry in here),
                max(float(entry.weight.max()) for entry in here),
                _estimate(of_side(place, "weight")),
            )
        )
    difference = {}
    if len(sides) == 2:
        difference = {name: _difference(of_side(1, name), of_side(0, name)) for name in ESTIMATORS}
    read = dict.fromkeys(name for side in sides for ranker in side.rankers.values() for name in ranker.columns)
    return Replay(
        len(log), int(log.unit.max()) + 1, log.items.height, len(log.positions),
        bool(np.isin(log.reward, (0, 1)).all()), policy, draws,
        Estimate(logged, interval_of_draws(own_draws), {}), replayed, difference,
        [name for name in read if name not in log.items.columns],
        [name for name in read if name in log.items.columns],
    )  # fmt: skip


def _task_at(tasks: Mapping[str, str], position: str) -> str:
    if position not in tasks:
        raise SettingError(
            f"Expected a task for each position of the log, found none for {position!r}; tasks are given for "
            f"{', '.join(tasks)}."
        )
    return tasks[position]


def _estimate(by_seed: Mapping[int, Floats], minus: Floats | float = 0.0) -> Estimate:
    """Return the mean over seeds; each array holds the value, then those of the resamples."""
    mean = np.mean([found - minus for found in by_seed.values()], axis=0)
    values = {number: float((found - minus)[0]) for number, found in by_seed.items()}
    return Estimate(float(mean[0]), interval_of_draws(mean[1:]), values)


def _difference(here: Mapping[int, Floats], there: Mapping[int, Floats]) -> Estimate:
    mean = np.mean(list(here.values()), axis=0) - np.mean(list(there.values()), axis=0)
    paired = {number: float(here[number][0] - there[number][0]) for number in here.keys() & there.keys()}
    return Estimate(float(mean[0]), interval_of_draws(mean[1:]), dict(sorted(paired.items())))


def _rounds(
    label: str,
    ranker: RowScorer,
    *,
    log: BanditLog,
    by_position: Sequence[str],
    policy: RankingPolicy,
    model: RewardModel,
) -> PolicyRounds:
    """Return what one ranker's policy would have done on the rounds of the log."""
    _check_columns(label, ranker, log)
    known = ranker.schema.task_names
    for task in by_position:
        if task not in known:
            raise SettingError(f"{label}: expected a task that ranks, out of {', '.join(known)}; found {task!r}.")
    columns = list(dict.fromkeys(by_position))
    binary = {task.name: task.binary for task in ranker.schema.tasks}
    task_of = np.array([columns.index(task) for task in by_position])
    read = [name for name in log.context.columns if name in ranker.columns]
    contexts, places = _distinct(log.context.select(read), len(log))
    order, items = np.argsort(places, kind="stable"), log.items.height
    taken, expected, modelled = np.empty(len(log)), np.empty(len(log)), np.empty(len(log))
    tells_items_apart = False
    size = max(1, _CANDIDATES // items)
    for start in range(0, int(places.max()) + 1, size):
        found = ranker.predict(_candidates(contexts[start : start + size], log.items))
        scores = np.stack([_scores(found[task].to_numpy(), binary[task]) for task in columns])
        scores = scores.reshape(len(columns), -1, items)
        tells_items_apart = tells_items_apart or bool(np.ptp(scores, axis=2).any())
        first, end = np.searchsorted(places[order], [start, start + size])
        for part in range(first, end, size):
            here = order[part : min(part + size, end)]
            share = policy.probabilities(scores[task_of[log.position[here]], places[here] - start])
            fitted, logged = model.of_items(here), (np.arange(len(here)), log.action[here])
            taken[here], modelled[here], expected[here] = share[logged], fitted[logged], (share * fitted).sum(1)
    if not tells_items_apart:
        raise SettingError(f"{label} predicts the same for every item in every round, so that it ranks none.")
    if not taken.any():
        raise DataError(
            f"In none of the {len(log):,} rounds does {label} pick the item that was logged, so that the log says "
            "nothing about it: take more rounds, or a softer policy (--temperature, --epsilon)."
        )
    return PolicyRounds(log.reward, taken / log.propensity, modelled, expected)


def _check_columns(label: str, ranker: RowScorer, log: BanditLog) -> None:
    there = {*log.context.columns, *log.items.columns}
    if missing := [name for name in ranker.columns if name not in there]:
        raise DataError(
            f"{label} reads the column {missing[0]!r}, which neither the log nor the item table has "
            f"({len(missing)} missing). A feature of items belongs into the item table."
        )
    if not any(name in log.items.columns for name in ranker.columns):
        raise SettingError(
            f"{label} reads no column of the item table ({', '.join(log.items.columns)}), so that its predictions are "
            "the same for every item: train it with features of the items."
        )


def _distinct(context: pl.DataFrame, rounds: int) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return the different rows, and the place of each row among them: equal contexts are scored once."""
    if not context.columns:
        return context, np.zeros(rounds, np.int64)
    number = max(context.columns, key=len) + "#"  # a name that no column has
    rows = context.unique(maintain_order=True)
    places = context.join(
        rows.with_row_index(number), on=context.columns, how="left", nulls_equal=True, maintain_order="left"
    )
    return rows, places[number].to_numpy().astype(np.int64)


def _candidates(contexts: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Return every item in every context: the items of the first context, then those of the second."""
    if not contexts.columns:
        return items
    rows, count = contexts.height, items.height
    repeated, tiled = np.repeat(np.arange(rows), count), np.tile(np.arange(count), rows)
    return pl.concat([contexts[repeated], items[tiled]], how="horizontal")


def _scores(predictions: NDArray[np.floating], binary: bool) -> NDArray[np.float64]:
    """Return log-odds of probabilities, and numbers as they are."""
    if not binary:
        return predictions.astype(np.float64)
    inside = np.clip(predictions.astype(np.float64), 1e-12, 1 - 1e-12)
    found: NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
    return found
