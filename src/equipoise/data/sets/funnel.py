"""A generated ad funnel for controlled experiments, with known true probabilities and best reachable NE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import update_wrapper
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.data.dataset import Dataset, Split
from equipoise.data.source import DataSource
from equipoise.errors import DataError
from equipoise.schema import Categorical, Numeric, Schema, Task

__all__ = ["SOURCE", "TASKS", "Chunk", "Funnel", "IdField", "chunks", "generate", "load"]

TASKS: Final = (
    Task("click", "the ad is clicked"),
    Task("like", "the ad is liked"),
    Task("long_view", "the ad is viewed for long"),
    Task("conversion", "the ad is clicked and then converts; 0 without a click", after="click", over="all"),
)

_CLICK, _CONVERSION = 0, 3  # places in TASKS
_SIDES: Final = np.array([1.0, -1.0, -1.0, 1.0])  # what sells (click, conversion) against what pleases
_CHUNK: Final = 8_192  # so that a chunk stays in the cache
_PILOT: Final = 131_072  # rows drawn to calibrate the truth; they are no part of the data
_NUMERIC_WEIGHT: Final = 0.5
_TRAIN, _VALIDATION = 0.7, 0.1  # shares of the rows in the order of time; the last 0.2 are the test split

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


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
    0, so its probability is the product of both.

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
            The initial loss is that of predicting the base rate, its entropy; it is divided by
            ``loss_imbalance^(m/3)`` for m = 0 (click), 1, 2, 3 (conversion), by making labels rarer. (To
            scale a loss without touching the data, scale it in training.)
        drift: the rotation of the weight vectors from the first row to the last, in quarter turns, in [0, 1].
        drift_at: 0: the rotation is even over all rows; else the share of the rows after which all of it comes at
            once, in [0, 1].
        click_rate: expected share of positive labels, in [1e-5, 0.5].
        like_rate: the same, before ``loss_imbalance`` acts.
        long_view_rate: the same, before ``loss_imbalance`` acts.
        conversion_rate: the same, before ``loss_imbalance`` acts; at most ``click_rate``.
        signal: standard deviation of the true logits, in (0, 5]. The larger, the lower the best reachable
            NE.
        id_fields: the categorical features.
        numerics: number of numeric features, uniform of mean 0 and variance 1.
        latents: dimension of the latent model, at least 10: one common direction and one for each task,
            twice, for the first row and for a quarter turn later.

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

    def __post_init__(self) -> None:
        _expect("rows", self.rows, int, 10, 2**40)
        _expect("seed", self.seed, int, 0, 2**63 - 1)
        _expect("conflict", self.conflict, float, -1, 1)
        _expect("loss_imbalance", self.loss_imbalance, float, 1, 1000)
        _expect("drift", self.drift, float, 0, 1)
        _expect("drift_at", self.drift_at, float, 0, 1)
        for task in TASKS:
            _expect(f"{task.name}_rate", getattr(self, f"{task.name}_rate"), float, 1e-5, 0.5)
        if self.conversion_rate > self.click_rate:
            raise DataError(
                f"funnel: conversion_rate should be at most click_rate ({self.click_rate}), for a conversion "
                f"follows a click; found {self.conversion_rate}."
            )
        _expect("signal", self.signal, float, 1e-3, 5)
        _expect("numerics", self.numerics, int, 0, 1000)
        _expect("latents", self.latents, int, 2 * (len(TASKS) + 1), 1000)
        if (
            not isinstance(self.id_fields, tuple)
            or not self.id_fields
            or not all(isinstance(field, IdField) for field in self.id_fields)
        ):
            raise DataError(f"funnel: id_fields should be at least one IdField, found {self.id_fields!r}.")

    @property
    def rates(self) -> tuple[float, ...]:
        """Expected share of positive labels per task, after ``loss_imbalance``."""
        last = len(TASKS) - 1
        given = [getattr(self, f"{task.name}_rate") for task in TASKS]
        return tuple(
            rate if self.loss_imbalance == 1 or m == 0
            else _rate_of_entropy(_entropy(rate) / self.loss_imbalance ** (m / last))
            for m, rate in enumerate(given)
        )  # fmt: skip

    @property
    def schema(self) -> Schema:
        """Columns of the generated data."""
        return Schema(
            [Categorical(field.name, field.size + 1) for field in self.id_fields],
            [Numeric(f"numeric_{k}") for k in range(self.numerics)],
            TASKS,
        )


class Chunk(NamedTuple):
    """Consecutive rows.

    Attributes:
        categorical: ids, int32, shape [B, number of id fields].
        numeric: float32, shape [B, numerics].
        labels: 0 or 1, float32, shape [B, 4].
        probabilities: the true probabilities of the labels given the features, float32, shape [B, 4].
    """

    categorical: NDArray[np.int32]
    numeric: Float32
    labels: Float32
    probabilities: Float32


def load(**knobs: Any) -> Dataset:
    """Generate the data set of ``Funnel(**knobs)``; :class:`Funnel` explains the options."""
    return generate(Funnel(**knobs))


update_wrapper(load, Funnel, assigned=(), updated=())  # so that inspect.signature(load) lists the knobs


SOURCE: Final = DataSource(
    "funnel",
    load,
    summary="A generated ad funnel for controlled experiments: the true probabilities, and so the best reachable "
    "normalized entropy, are known; conflict, imbalance and drift can be set.",
    obtain="nothing to get: generated in seconds",
    columns=f"{len(_FIELDS)} categorical, {Funnel.numerics} numeric; tasks "
    f"{', '.join(f'`{task.name}`' for task in TASKS)}",
    splits="in the order of time: train 70 %, validation 10 %, test 20 %",
    epochs=1,
    batch_size=2048,
    licence="generated by equipoise: free to use",
    source="equipoise.data.sets.funnel",
)


def generate(funnel: Funnel) -> Dataset:
    """Generate all rows in memory as three splits in the order of time, with the best reachable NE on the test split.

    ``best_ne`` is the NE of the true probabilities themselves on the labels of the test split: computed
    like a model's NE on the same labels, so that the noise of the labels cancels in the difference. No model
    does better in expectation, and a model that has seen an id only a few times cannot come close.
    A task whose test labels are all equal has no NE.

    Example:
        >>> dataset = generate(Funnel(rows=50_000, conflict=1.0))
        >>> dataset.name, len(dataset.train), len(dataset.validation), len(dataset.test)
        ('funnel (generated)', 35000, 5000, 10000)
        >>> sorted(dataset.best_ne)
        ['click', 'conversion', 'like', 'long_view']
    """
    rows, schema = funnel.rows, funnel.schema
    categorical = torch.empty(rows, len(schema.categorical), dtype=torch.int32)
    numeric = torch.empty(rows, len(schema.numeric))
    labels = torch.empty(rows, len(TASKS))
    first_validation = round(_TRAIN * rows)
    first_test = round((_TRAIN + _VALIDATION) * rows)
    log_loss = np.zeros(len(TASKS))
    start = 0
    for chunk in chunks(funnel):
        stop = start + len(chunk.labels)
        categorical[start:stop] = torch.from_numpy(chunk.categorical)
        numeric[start:stop] = torch.from_numpy(chunk.numeric)
        labels[start:stop] = torch.from_numpy(chunk.labels)
        test = slice(max(0, first_test - start), None)
        log_loss += _log_losses(chunk.probabilities[test], chunk.labels[test]).sum(axis=0)
        start = stop
    weight = torch.ones(rows)

    def split(first: int, end: int) -> Split:
        part = slice(first, end)
        return Split(categorical[part], numeric[part], labels[part], weight[part])

    rates = labels[first_test:].double().mean(0).tolist()
    best_ne = {
        task.name: float(total) / (rows - first_test) / _entropy(rate)
        for task, total, rate in zip(TASKS, log_loss, rates, strict=True)
        if 0 < rate < 1
    }
    return Dataset(
        "funnel (generated)",
        schema,
        split(0, first_validation),
        split(first_validation, first_test),
        split(first_test, rows),
        notes=(_note(funnel),),
        best_ne=best_ne,
        **SOURCE.for_dataset(),
    )


def chunks(funnel: Funnel) -> Iterator[Chunk]:
    """Yield the rows in the order of time, 8,192 at once, in memory that does not grow with ``rows``.

    The rows do not depend on the number of threads: each chunk has its own random stream, and no sum is left to a
    threaded library. (Another release of NumPy may draw other numbers from the same seed.)

    Example:
        >>> sum(len(chunk.labels) for chunk in chunks(Funnel(rows=100_000)))
        100000
    """
    truth = _Truth(funnel)
    for number, start in enumerate(range(0, funnel.rows, _CHUNK)):
        stop = min(start + _CHUNK, funnel.rows)
        time = (np.arange(start, stop) / (funnel.rows - 1)).astype(np.float32)
        yield truth.rows(np.random.default_rng([funnel.seed, 2, number]), time)


class _Truth:
    """The latent model: id vectors, weights and intercepts; the last two are fitted on pilot rows."""

    def __init__(self, funnel: Funnel) -> None:
        self.funnel = funnel
        rng = np.random.default_rng([funnel.seed, 0])
        self.samplers = [_Zipf(field) for field in funnel.id_fields]
        share = 1 / len(self.samplers)
        self.vectors = [_id_vectors(rng, zipf.probabilities, funnel.latents, share) for zipf in self.samplers]
        first, later = _weights(rng, funnel.conflict, funnel.latents)

        pilot = np.random.default_rng([funnel.seed, 1])
        phi = self._features(*self._inputs(pilot, _PILOT)).astype(np.float64)
        self.mean = phi.mean(axis=1)
        centred = phi - self.mean[:, None]
        # einsum throughout: a threaded matrix product may sum in another order
        variance, axes = np.linalg.eigh(np.einsum("ib,jb->ij", centred, centred) / _PILOT)
        whiten = funnel.signal * np.einsum("ik,k,jk->ij", axes, variance**-0.5, axes)
        self.first = np.einsum("ij,jm->im", whiten, first)
        self.later = np.einsum("ij,jm->im", whiten, later)
        self.intercepts = np.zeros(len(TASKS))
        logits = self._logits(phi.astype(np.float32), pilot.random(_PILOT, dtype=np.float32))
        for m, rate in enumerate(funnel.rates):
            given = _sigmoid(logits[_CLICK] + np.float32(self.intercepts[_CLICK])) if m == _CONVERSION else None
            self.intercepts[m] = _intercept(logits[m], given, rate)

    def rows(self, rng: np.random.Generator, time: Float32) -> Chunk:
        ids, numeric = self._inputs(rng, len(time))
        probabilities = _sigmoid(self._logits(self._features(ids, numeric), time))
        labels = rng.random(probabilities.shape, dtype=np.float32) < probabilities
        labels[_CONVERSION] &= labels[_CLICK]
        probabilities[_CONVERSION] *= probabilities[_CLICK]
        return Chunk(
            np.stack(ids, axis=1, dtype=np.int32, casting="same_kind"),
            numeric,
            labels.T.astype(np.float32, order="C"),
            np.ascontiguousarray(probabilities.T),
        )

    def _inputs(self, rng: np.random.Generator, count: int) -> tuple[list[NDArray[np.int64]], Float32]:
        ids = [zipf.draw(rng, count) for zipf in self.samplers]
        numeric = rng.random((count, self.funnel.numerics), dtype=np.float32)
        numeric -= np.float32(0.5)
        numeric *= np.float32(math.sqrt(12))
        return ids, numeric

    def _features(self, ids: list[NDArray[np.int64]], numeric: Float32) -> Float32:
        """Return φ before whitening, shape [latents, B]."""
        z = self.vectors[0].take(ids[0], axis=0)
        for vectors, column in zip(self.vectors[1:], ids[1:], strict=True):
            z += vectors.take(column, axis=0)
        latents = z.shape[1]
        for start in range(0, numeric.shape[1], latents):  # number k moves latent k modulo the latents
            some = numeric[:, start : start + latents]
            z[:, : some.shape[1]] += np.float32(_NUMERIC_WEIGHT) * some
        return np.ascontiguousarray(np.tanh(z, out=z).T)

    def _logits(self, phi: Float32, time: Float32) -> Float32:
        """Return the true logits, shape [4, B]."""
        logits = self._read(phi, self.first)
        if self.funnel.drift:
            turned = (time >= self.funnel.drift_at).astype(np.float32) if self.funnel.drift_at else time
            angle = np.float32(self.funnel.drift * math.pi / 2) * turned
            logits = np.cos(angle) * logits + np.sin(angle) * self._read(phi, self.later)
        return logits + self.intercepts.astype(np.float32)[:, None]

    def _read(self, phi: Float32, weights: Float64) -> Float32:
        mean = np.einsum("i,im->m", self.mean, weights).astype(np.float32)
        logits: Float32 = np.einsum("ib,im->mb", phi, weights.astype(np.float32))
        logits -= mean[:, None]
        return logits


class _Zipf:
    """Draws ids with probability ∝ id^-exponent by the alias method (Vose, IEEE TSE 17:972, 1991).

    A uniform number picks a slot; the slot keeps its own id with probability ``keep``, else gives its alias.
    Ids are sorted by probability, so the rich (above 1/size) come first, and prefix sums pair all poor with
    rich ones at once.
    """

    def __init__(self, field: IdField) -> None:
        mass = np.arange(1, field.size + 1, dtype=np.float64) ** -field.exponent
        self.probabilities = mass / mass.sum()
        surplus = self.probabilities * field.size - 1
        rich = int((surplus > 0).sum())
        self.keep = np.ones(field.size)
        self.alias = np.arange(field.size)
        if rich:  # else all are equal
            given, taken = surplus[:rich].cumsum(), (-surplus[rich:]).cumsum()
            donor = given.searchsorted(np.concatenate(([0.0], taken[:-1])), side="right").clip(max=rich - 1)
            self.keep[rich:] += surplus[rich:]
            self.alias[rich:] = donor
            # what the last poor slot takes beyond a donor's surplus leaves that donor poor: the next fills it
            overdrawn = taken[donor.searchsorted(np.arange(rich - 1), side="right") - 1] - given[:-1]
            self.keep[: rich - 1] -= overdrawn.clip(0, 1)
            self.alias[: rich - 1] = np.arange(1, rich)

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        position = rng.random(count)
        position *= len(self.keep)
        slot = position.astype(np.int64)
        position -= slot
        return np.where(position < self.keep.take(slot), slot, self.alias.take(slot)) + 1


def _id_vectors(rng: np.random.Generator, probabilities: Float64, latents: int, variance: float) -> Float32:
    """Draw a vector per id, row 0 unused; over the distribution of ids each latent has mean 0 and this variance."""
    vectors = rng.standard_normal((len(probabilities), latents))
    vectors -= np.einsum("i,ik->k", probabilities, vectors)
    deviation = np.sqrt(np.einsum("i,ik->k", probabilities, vectors**2))
    vectors *= math.sqrt(variance) / np.maximum(deviation, 1e-12)  # a field of one id tells nothing
    return np.concatenate([np.zeros((1, latents)), vectors]).astype(np.float32)


def _weights(rng: np.random.Generator, conflict: float, latents: int) -> tuple[Float64, Float64]:
    """Draw the unit weight vectors of the tasks, as columns: at the first row and, orthogonal, a quarter turn later."""
    tasks = len(TASKS)
    basis = np.linalg.qr(rng.standard_normal((latents, 2 * (tasks + 1))))[0]
    sides = _SIDES if conflict > 0 else np.ones(tasks)
    common, own = math.sqrt(abs(conflict)) * sides, math.sqrt(1 - abs(conflict)) * np.eye(tasks)
    mix = np.concatenate([common[None], own])
    return np.einsum("ij,jm->im", basis[:, : tasks + 1], mix), np.einsum("ij,jm->im", basis[:, tasks + 1 :], mix)


def _intercept(logits: Float32, given: Float32 | None, rate: float) -> float:
    """Find by bisection the b at which the mean of sigmoid(logits + b), times ``given``, is ``rate``."""
    low, high = -30.0, 30.0
    for _ in range(26):
        middle = (low + high) / 2
        p = _sigmoid(logits + np.float32(middle))
        mean = float((p if given is None else p * given).mean(dtype=np.float64))
        low, high = (middle, high) if mean < rate else (low, middle)
    return (low + high) / 2


def _sigmoid(x: Float32) -> Float32:
    """Replace ``x`` by its sigmoid in place, and return it."""
    np.negative(x, out=x)
    np.exp(x, out=x)
    x += 1
    return np.reciprocal(x, out=x)


def _log_losses(p: Float32, labels: Float32) -> Float64:
    likelihood = np.where(labels == 1, p, 1 - p).astype(np.float64)
    result: Float64 = -np.log(likelihood)
    return result


def _entropy(rate: float) -> float:
    return -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def _rate_of_entropy(entropy: float) -> float:
    """Find the rate under 1/2 of this entropy, by bisection on its logarithm."""
    low, high = 1e-12, 0.5
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _entropy(middle) < entropy else (low, middle)
    return math.sqrt(low * high)


def _note(funnel: Funnel) -> str:
    changed = [
        f"{field.name}={getattr(funnel, field.name)!r}"
        for field in fields(funnel)
        if getattr(funnel, field.name) != field.default
    ]
    return (
        f"Generated data (a latent ad funnel, {', '.join(changed) or 'at its defaults'}), not observed "
        "people: it shows how methods behave under known conditions, not how well they do on real traffic."
    )
