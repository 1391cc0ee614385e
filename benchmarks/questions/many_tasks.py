"""Generated data with any number of tasks, for the question how balancing changes with that number.

The features, and the logits behind the labels, are those of the generated funnel at conflict 0: four independent true
logits. Each task mixes them by a random unit vector, and has a base rate drawn between 1 and 20 %, so tasks are
related, differ in how rare they are, and a larger number of them brings no new kind of information. (More tasks of the
funnel itself are the same four events on further surfaces, each with logits of its own.)
"""

from __future__ import annotations

import numpy as np
import torch

from equipoise.data import Dataset, Split
from equipoise.data.sets.funnel import Chunk, Funnel, IdField, chunks
from equipoise.schema import Schema, Task

__all__ = ["load"]

FIELDS = (
    IdField("user", 1_000, 0.8), IdField("ad", 500, 1.1), IdField("category", 50, 0.9), IdField("placement", 20, 0.7),
)  # fmt: skip
"""Few enough ids that a short training learns them."""
SIGNAL = 1.5  # standard deviation of each task's true logits, as the funnel's
RAREST, MOST_FREQUENT = 0.01, 0.2
TRAIN, VALIDATION = 0.7, 0.1


def load(*, tasks: int, rows: int = 80_000, seed: int = 0) -> Dataset:
    """Return a data set with so many tasks; the splits are 70, 10 and 20 % of the rows."""
    funnel = Funnel(rows=rows, seed=seed, id_fields=FIELDS)
    found = list(chunks(funnel))
    rng = np.random.default_rng([seed, tasks])
    mix = rng.standard_normal((4, tasks))
    mix /= np.linalg.norm(mix, axis=0)
    rates = np.exp(rng.uniform(np.log(RAREST), np.log(MOST_FREQUENT), tasks))
    latent = np.concatenate([true_logits(chunk) for chunk in found])
    latent = (latent - latent.mean(0)) / latent.std(0)
    logits = SIGNAL * latent @ mix
    logits += intercepts(logits, rates)
    labels = torch.from_numpy((rng.random(logits.shape) < sigmoid(logits)).astype(np.float32))
    categorical = torch.from_numpy(np.concatenate([chunk.categorical for chunk in found]))
    numeric = torch.from_numpy(np.concatenate([chunk.numeric for chunk in found]))
    schema = Schema(funnel.schema.categorical, funnel.schema.numeric, [Task(f"task{place}") for place in range(tasks)])

    def split(first: float, end: float) -> Split:
        part = slice(round(first * rows), round(end * rows))
        return Split(categorical[part], numeric[part], labels[part], torch.ones(len(labels[part])))

    return Dataset(
        f"{tasks} tasks (generated)", schema, split(0, TRAIN), split(TRAIN, TRAIN + VALIDATION),
        split(TRAIN + VALIDATION, 1), epochs=1, batch_size=512,
    )  # fmt: skip


def true_logits(chunk: Chunk) -> np.ndarray:
    """Return the four true logits of each row: a conversion's is that given a click."""
    p = chunk.probabilities.astype(np.float64)
    p[:, 3] /= p[:, 0]
    p = p.clip(1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def intercepts(logits: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return by bisection what brings each task's mean probability to its rate."""
    low, high = np.full(len(rates), -30.0), np.full(len(rates), 30.0)
    sample = logits[:20_000]
    for _ in range(30):
        middle = (low + high) / 2
        under = sigmoid(sample + middle).mean(0) < rates
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return (low + high) / 2


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
