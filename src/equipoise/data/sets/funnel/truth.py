"""The true model behind the generated funnel: ids, features, weights over time, and the labels drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.data.sets.funnel.options import EVENTS, Funnel, IdField

__all__ = ["Chunk", "Float32", "Float64", "Truth", "chunks"]

_CLICK, _CONVERSION = 0, 3  # places among the events of a surface
_SIDES: Final = np.array([1.0, -1.0, -1.0, 1.0])  # what sells (click, conversion) against what pleases
_CHUNK: Final = 8_192  # so that a chunk stays in the cache
_PILOT: Final = 131_072  # rows drawn to calibrate the truth; they are no part of the data
_NUMERIC_WEIGHT: Final = 0.5

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Chunk(NamedTuple):
    """Consecutive rows.

    Attributes:
        categorical: ids, int32, shape [B, number of id fields].
        numeric: float32, shape [B, numerics].
        labels: 0 or 1, float32, shape [B, tasks].
        probabilities: the true probabilities of the labels given the features, float32, shape [B, tasks].
    """

    categorical: NDArray[np.int32]
    numeric: Float32
    labels: Float32
    probabilities: Float32


def chunks(funnel: Funnel) -> Iterator[Chunk]:
    """Yield the rows in the order of time, 8,192 at once, in memory that does not grow with ``rows``.

    The rows do not depend on the number of threads: each chunk has its own random stream, and no sum is left to a
    threaded library. (Another release of NumPy may draw other numbers from the same seed.)

    Example:
        >>> sum(len(chunk.labels) for chunk in chunks(Funnel(rows=100_000)))
        100000
    """
    truth = Truth(funnel)
    for number, start in enumerate(range(0, funnel.rows, _CHUNK)):
        stop = min(start + _CHUNK, funnel.rows)
        time = (np.arange(start, stop) / (funnel.rows - 1)).astype(np.float32)
        yield truth.rows(np.random.default_rng([funnel.seed, 2, number]), time)


class Truth:
    """The latent model: id vectors, weights and intercepts; the last two are fitted on pilot rows.

    Example:
        >>> truth = Truth(Funnel(rows=1000))
        >>> ids, numbers = truth.inputs(np.random.default_rng(0), 5)
        >>> truth.probabilities(ids, numbers, np.ones(5, np.float32)).shape
        (5, 4)
    """

    def __init__(self, funnel: Funnel) -> None:
        self.funnel = funnel
        rng = np.random.default_rng([funnel.seed, 0])
        self.samplers = [_Zipf(field) for field in funnel.id_fields]
        share = 1 / len(self.samplers)
        self.vectors = [_id_vectors(rng, zipf.probabilities, funnel.latents, share) for zipf in self.samplers]
        first, later = _weights(rng, funnel)
        # a conversion follows the click on its own surface
        self.click_of = {place: place - _CONVERSION for place in range(_CONVERSION, funnel.tasks, EVENTS)}

        pilot = np.random.default_rng([funnel.seed, 1])
        phi = self._features(*self._inputs(pilot, _PILOT)).astype(np.float64)
        self.mean = phi.mean(axis=1)
        centred = phi - self.mean[:, None]
        # einsum throughout: a threaded matrix product may sum in another order
        variance, axes = np.linalg.eigh(np.einsum("ib,jb->ij", centred, centred) / _PILOT)
        whiten = funnel.signal * np.einsum("ik,k,jk->ij", axes, variance**-0.5, axes)
        self.first = np.einsum("ij,jm->im", whiten, first)
        self.later = np.einsum("ij,jm->im", whiten, later)
        self.intercepts = np.zeros(funnel.tasks)
        logits = self._logits(phi.astype(np.float32), pilot.random(_PILOT, dtype=np.float32))
        for m, rate in enumerate(funnel.rates):
            click = self.click_of.get(m)
            given = None if click is None else _sigmoid(logits[click] + np.float32(self.intercepts[click]))
            self.intercepts[m] = _intercept(logits[m], given, rate)

    def inputs(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.int32], Float32]:
        """Draw ids, int32, shape [count, number of id fields], and numbers, shape [count, numerics]."""
        ids, numeric = self._inputs(rng, count)
        return np.stack(ids, axis=1, dtype=np.int32, casting="same_kind"), numeric

    def probabilities(self, categorical: NDArray[np.integer], numeric: Float32, time: Float32) -> Float32:
        """Return the true probabilities of the labels, shape [B, tasks].

        Args:
            categorical: ids, shape [B, number of id fields].
            numeric: shape [B, numerics].
            time: 0 at the first row of the data set, 1 at the last, shape [B].
        """
        ids = [column.astype(np.int64) for column in categorical.T]
        found = _sigmoid(self._logits(self._features(ids, numeric), time))
        for conversion, click in self.click_of.items():
            found[conversion] *= found[click]
        return np.ascontiguousarray(found.T)

    def rows(self, rng: np.random.Generator, time: Float32) -> Chunk:
        """Draw rows at the given times, shape [B]."""
        ids, numeric = self._inputs(rng, len(time))
        probabilities = _sigmoid(self._logits(self._features(ids, numeric), time))
        labels = rng.random(probabilities.shape, dtype=np.float32) < probabilities
        for conversion, click in self.click_of.items():
            labels[conversion] &= labels[click]
            probabilities[conversion] *= probabilities[click]
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
        """Return the true logits, shape [tasks, B]."""
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


def _weights(rng: np.random.Generator, funnel: Funnel) -> tuple[Float64, Float64]:
    """Draw the unit weight vectors of the tasks, as columns: at the first row and, orthogonal, a quarter turn later."""
    half, conflict = EVENTS + 1, funnel.conflict
    several = funnel.tasks > EVENTS
    basis = np.linalg.qr(rng.standard_normal((funnel.latents, funnel.latents if several else 2 * half)))[0]
    sides = _SIDES if conflict > 0 else np.ones(EVENTS)
    common, own = math.sqrt(abs(conflict)) * sides, math.sqrt(1 - abs(conflict)) * np.eye(EVENTS)
    mix = np.concatenate([common[None], own])
    first, later = basis[:, :half], basis[:, half : 2 * half]
    if several:
        further = basis[:, 2 * half :]
        middle = further.shape[1] // 2
        first = np.concatenate([first, further[:, :middle]], axis=1)
        later = np.concatenate([later, further[:, middle : 2 * middle]], axis=1)
        mix = _on_surfaces(rng, np.pad(mix, ((0, middle), (0, 0))), funnel)
    mix = mix[:, : funnel.tasks]
    return np.einsum("ij,jm->im", first, mix), np.einsum("ij,jm->im", later, mix)


def _on_surfaces(rng: np.random.Generator, events: Float64, funnel: Funnel) -> Float64:
    """Return unit columns around those of the events, each with a part of its own that is orthogonal to its event."""
    shared, own = math.sqrt(funnel.surface_correlation), math.sqrt(1 - funnel.surface_correlation)
    columns = []
    for place in range(funnel.tasks):
        event = events[:, place % EVENTS]
        part = rng.standard_normal(len(event))
        part -= (part * event).sum() * event
        columns.append(shared * event + own * part / math.sqrt((part**2).sum()))
    return np.stack(columns, axis=1)


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
