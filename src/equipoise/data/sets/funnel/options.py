"""The options of the generated funnel, and the tasks that they ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from equipoise.errors import DataError
from equipoise.schema import Categorical, Numeric, Schema, Task

__all__ = ["EVENTS", "TASKS", "Funnel", "IdField", "entropy"]

TASKS: Final = (
    Task("click", "the ad is clicked"),
    Task("like", "the ad is liked"),
    Task("long_view", "the ad is viewed for long"),
    Task("conversion", "the ad is clicked and then converts; 0 without a click", after="click", over="all"),
)

EVENTS: Final = len(TASKS)
"""The events on one surface; more tasks are the same events on further surfaces."""


def _expect(what: str, value: object, kind: type, low: float, high: float) -> None:
    numbers = (int, float) if kind is float else (int,)
    good = isinstance(value, numbers) and not isinstance(value, bool) and low <= value <= high
    if not good:
        name = "a whole number" if kind is int else "a number"
        raise DataError(f"funnel: {what} should be {name} from {low} to {high}, found {value!r}.")


@dataclass(frozen=True)
class IdField:
    """A feature whose ids k = 1 … size occur with probability ∝ k^-exponent (Zipf); id 0 never occurs."""

    name: str
    size: int
    exponent: float

    def __post_init__(self) -> None:
        _expect(f"size of id field {self.name!r}", self.size, int, 1, 2**31 - 2)
        _expect(f"exponent of id field {self.name!r}", self.exponent, float, 0, 10)


_FIELDS: Final = (
    IdField("user", 100_000, 0.8),
    IdField("ad", 20_000, 1.1),
    IdField("advertiser", 2_000, 1.1),
    IdField("category", 100, 0.9),
    IdField("placement", 20, 0.7),
    IdField("hour", 24, 0.3),
)


@dataclass(frozen=True)
class Funnel:
    """The options of the generator.

    The truth is a latent model: each id has a vector of ``latents`` numbers, a row's latent z is the sum
    of its ids' vectors plus the numeric features, and the logit of task m is ``signal`` · ⟨w_m, φ⟩ + b_m,
    where φ is tanh(z) whitened and ‖w_m‖ = 1. All tasks read all latents, so what a model learns about an
    id from one task helps the others. A conversion given a click has such a logit too; without a click its label is
    0, so its probability is the product of both. More than four tasks are the same four events on further surfaces,
    such as ``click_2``: related tasks whose number can be chosen.

    Attributes:
        rows: rows in all splits together, at least 10. Time passes row by row: the first 70 % are the
            train split, the next 10 % validation, the last 20 % test.
        seed: the seed of everything random, including the true model.
        conflict: minus the correlation between the weight vectors, hence the true logits, of two tasks on
            different sides (click and conversion against like and long_view), in [-1, 1]; two tasks on
            one side are correlated by ``|conflict|``. At -1 all tasks follow one direction. At 0 they are
            unrelated and compete for a model's capacity, where a shared bottom suffers most (Ma et al.,
            KDD 2018, section 3.2). At 1 the sides are opposed: what raises the logits of one lowers the
            other's as much, and gradients on shared parameters point against each other until each task's
            tower has learnt its sign.
        loss_imbalance: the factor by which the initial loss of the last task shrinks, in [1, 1000].
            The initial loss is that of predicting the base rate, its entropy; of task m = 0 (click), 1, … it is
            divided by ``loss_imbalance^(m / (tasks - 1))``, by making labels rarer. (To scale a loss without
            touching the data, scale it in training.)
        drift: the rotation of the weight vectors from the first row to the last, in quarter turns, in [0, 1].
        drift_at: 0: the rotation is even over all rows; else the share of the rows after which all of it comes at
            once, in [0, 1]. Above 0.7 no train row comes after it.
        click_rate: expected share of positive labels, in [1e-5, 0.5].
        like_rate: the same, before ``loss_imbalance`` acts.
        long_view_rate: the same, before ``loss_imbalance`` acts.
        conversion_rate: the same, before ``loss_imbalance`` acts; at most ``click_rate``.
        signal: standard deviation of the true logits, in (0, 5]. The larger, the lower the best reachable
            NE.
        id_fields: the categorical features.
        numerics: number of numeric features, uniform of mean 0 and variance 1.
        latents: dimension of the latent model, at least 10: one common direction and one for each event,
            twice, for the first row and for a quarter turn later. Tasks on further surfaces use what is left too.
        tasks: number of tasks, 2 … 128: click, like, long_view, conversion, then the same on a second surface
            (``click_2``, …), and so on; the last surface may have fewer.
        surface_correlation: correlation of the true logits of one event on two surfaces, where there are several,
            in [0, 1]: exact in expectation over the seed. It lowers that of different events alike.

    Raises:
        DataError: a value is of another type or outside its range.

    Example:
        >>> [round(rate, 4) for rate in Funnel(loss_imbalance=8).rates]
        [0.08, 0.0125, 0.022, 0.0009]
    """

    rows: int = 600_000
    seed: int = 0
    conflict: float = 0.0
    loss_imbalance: float = 1.0
    drift: float = 0.0
    drift_at: float = 0.0
    click_rate: float = 0.08
    like_rate: float = 0.03
    long_view_rate: float = 0.15
    conversion_rate: float = 0.01
    signal: float = 1.5
    id_fields: tuple[IdField, ...] = _FIELDS
    numerics: int = 8
    latents: int = 16
    tasks: int = EVENTS
    surface_correlation: float = 0.7

    def __post_init__(self) -> None:
        _expect("rows", self.rows, int, 10, 2**40)
        _expect("seed", self.seed, int, 0, 2**63 - 1)
        _expect("conflict", self.conflict, float, -1, 1)
        _expect("loss_imbalance", self.loss_imbalance, float, 1, 1000)
        for share in ("drift", "drift_at", "surface_correlation"):
            _expect(share, getattr(self, share), float, 0, 1)
        _expect("tasks", self.tasks, int, 2, 128)
        for task in TASKS:
            _expect(f"{task.name}_rate", getattr(self, f"{task.name}_rate"), float, 1e-5, 0.5)
        if self.conversion_rate > self.click_rate:
            raise DataError(
                f"funnel: conversion_rate should be at most click_rate ({self.click_rate}), for a conversion "
                f"follows a click; found {self.conversion_rate}."
            )
        _expect("signal", self.signal, float, 1e-3, 5)
        _expect("numerics", self.numerics, int, 0, 1000)
        _expect("latents", self.latents, int, 2 * (EVENTS + 1), 1000)
        if (
            not isinstance(self.id_fields, tuple)
            or not self.id_fields
            or not all(isinstance(field, IdField) for field in self.id_fields)
        ):
            raise DataError(f"funnel: id_fields should be at least one IdField, found {self.id_fields!r}.")

    @property
    def rates(self) -> tuple[float, ...]:
        """Expected share of positive labels per task, after ``loss_imbalance``."""
        last = self.tasks - 1
        given = [getattr(self, f"{TASKS[place % EVENTS].name}_rate") for place in range(self.tasks)]
        return tuple(
            rate if self.loss_imbalance == 1 or m == 0
            else _rate_of_entropy(entropy(rate) / self.loss_imbalance ** (m / last))
            for m, rate in enumerate(given)
        )  # fmt: skip

    @property
    def schema(self) -> Schema:
        """Columns of the generated data."""
        return Schema(
            [Categorical(field.name, field.size + 1) for field in self.id_fields],
            [Numeric(f"numeric_{k}") for k in range(self.numerics)],
            tuple(_task(place) for place in range(self.tasks)),
        )


def _task(place: int) -> Task:
    event, surface = TASKS[place % EVENTS], place // EVENTS + 1
    if surface == 1:
        return event
    after = f"{event.after}_{surface}" if event.after else ""
    return replace(
        event, name=f"{event.name}_{surface}", description=f"surface {surface}: {event.description}", after=after
    )


def entropy(rate: float) -> float:
    """Return the entropy of a label of this rate, in nats."""
    return -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def _rate_of_entropy(wanted: float) -> float:
    """Find the rate under 1/2 of this entropy, by bisection on its logarithm."""
    low, high = 1e-12, 0.5
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if entropy(middle) < wanted else (low, middle)
    return math.sqrt(low * high)
