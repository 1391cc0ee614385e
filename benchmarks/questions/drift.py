"""Trains on a stream whose truth drifts, slowly or at once: the generated funnel in the order of time.

    python benchmarks/questions/drift.py --out benchmarks/results/questions-drift.jsonl

Every batch is predicted before it is learnt, so the losses that a step returns are those of rows that the model has not
seen. NE is taken in windows of a twentieth of the rows. Its mean over tasks is compared after 60 % of the rows, where
the sudden drift comes. Each method gets the rate that is best before that point, on data of another seed. Since a rate
alone decides much after a drift, every method is trained at two common rates too. Each seed has its own data, truth and
initial weights. A line of the file holds one training; those that the file holds are not made again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import fmean

import torch
from many_tasks import FIELDS
from records import Record, Records, Tables, arguments, gain_in_words, markdown, show
from torch import Tensor

from equipoise.data import Dataset
from equipoise.data.sets.funnel import Funnel, generate
from equipoise.methods import parse_method
from equipoise.report.statistics import PairedComparison, relative_gain
from equipoise.settings import TrainingSettings
from equipoise.training import Learner

METHODS = {
    "equal": "equal weights",
    "multibalance": "MultiBalance, γ = 0.01",
    "multibalance:gamma=1.0": "γ = 1: equal lengths in each step",
    "pub-exact": "PUB (exact)",
}
DRIFT_AT = 0.6
KINDS = {
    "none": {}, "slow": {"drift": 1.0}, "sudden": {"drift": 1.0, "drift_at": DRIFT_AT}
}  # fmt: skip
RATES = (0.01, 0.03, 0.1)
SHOWN = (0.01, 0.03)  # rates at which every method is trained with all seeds, beside the one that it chooses
TUNING_SEED, SEEDS = 1000, 10
SPANS = {"60 to 70 %": (0.6, 0.7), "70 to 100 %": (0.7, 1.0)}
ROWS, BATCH_SIZE, WINDOWS = 150_000, 512, 20


def funnel(kind: str, rows: int, seed: int) -> Dataset:
    return generate(Funnel(rows=rows, seed=seed, id_fields=FIELDS, **KINDS[kind]))


def ne_by_window(dataset: Dataset, method: str, seed: int, lr: float) -> list[float]:
    """Train on the rows in the order of time, each batch predicted before it is learnt; return NE by window."""
    settings = TrainingSettings.of(lr=lr, seed=seed, schedule="constant")
    learner = Learner(dataset.schema, parse_method(method), settings)
    losses, labels = [], []
    for split in (dataset.train, dataset.validation, dataset.test):
        for batch in split.batches(BATCH_SIZE):
            losses.append(learner.step(batch))
            labels.append(batch.labels.mean(0))
    return [round(value, 6) for value in mean_ne(torch.stack(losses), torch.stack(labels))]


def mean_ne(losses: Tensor, rates: Tensor) -> list[float]:
    """Return the mean over tasks of the NE in each window, from losses and label rates by step, shape [steps, M]."""
    found = []
    for of_losses, of_rates in zip(losses.tensor_split(WINDOWS), rates.tensor_split(WINDOWS), strict=True):
        rate = of_rates.double().mean(0)
        entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
        found.append(float((of_losses.double().mean(0) / entropy).mean()))
    return found


def before_drift(row: Record) -> float:
    """Return the mean NE in the half of the windows before the drift, without the first ones; infinite if undefined."""
    found = fmean(row["ne"][round(0.3 * WINDOWS) : round(DRIFT_AT * WINDOWS)])
    return found if math.isfinite(found) else math.inf


def make(records: Records, rows: int, seeds: int) -> None:
    """Choose each method's rate for each kind of drift, and train with fresh seeds at that rate."""

    def trained(kind: str, method: str, seed: int, lr: float) -> Record:
        key = {"kind": kind, "method": method, "seed": seed, "lr": lr}
        return records.get(key, lambda: {"ne": ne_by_window(funnel(kind, rows, seed), method, seed, lr)})

    for kind, method in itertools.product(KINDS, METHODS):
        tried = [trained(kind, method, TUNING_SEED, lr) for lr in RATES]
        for lr, seed in itertools.product(sorted({*SHOWN, chosen_rate(tried)}), range(seeds)):
            trained(kind, method, seed, lr)


def chosen_rate(tried: Sequence[Record]) -> float:
    """Return the rate that is best before the drift."""
    return float(min(tried, key=before_drift)["lr"])


def tables(rows: Sequence[Record]) -> Tables:
    """Return a table for each kind of drift."""
    return {f"drift, {kind}": table([row for row in rows if row["kind"] == kind]) for kind in KINDS}


def table(rows: Sequence[Record]) -> list[str]:
    of = {
        (method, lr): [row for row in rows if (row["method"], row["lr"]) == (method, lr)]
        for method, lr in dict.fromkeys((row["method"], row["lr"]) for row in rows)
    }
    fresh = {key: [row for row in found if row["seed"] != TUNING_SEED] for key, found in of.items()}
    tried = {name: [row for row in rows if (row["method"], row["seed"]) == (name, TUNING_SEED)] for name in METHODS}
    chosen = {name: chosen_rate(found) for name, found in tried.items() if found}
    best_equal = fresh["equal", chosen["equal"]]
    lines = []
    for (method, lr), found in sorted(fresh.items(), key=lambda entry: (entry[0][1], list(METHODS).index(entry[0][0]))):
        if not found:
            continue
        equal = fresh["equal", lr]
        lines.append(
            [
                METHODS[method],
                f"{lr:g}" + (", chosen" if lr == chosen[method] else ""),
                *(f"{fmean(over(row, *ends) for row in found):.4f}" for ends in SPANS.values()),
                *(
                    "" if method == "equal" else gain_in_words(gain_over(found, equal, *ends))
                    for ends in SPANS.values()
                ),
                gain_in_words(gain_over(found, best_equal, DRIFT_AT, 1.0))
                if method != "equal" and lr == chosen[method]
                else "",
            ]
        )
    heads = [
        "method",
        "rate",
        *(f"NE, {span}" for span in SPANS),
        *(f"gain at the same rate, {span}" for span in SPANS),
    ]
    return markdown([*heads, "gain, each at its chosen rate"], lines)


def over(row: Record, first: float, end: float) -> float:
    """Return the mean NE over the windows of a part of the rows."""
    return fmean(row["ne"][round(first * WINDOWS) : round(end * WINDOWS)])


def gain_over(rows: Sequence[Record], reference: Sequence[Record], first: float, end: float) -> PairedComparison:
    by_seed = [{row["seed"]: over(row, first, end) for row in of} for of in (rows, reference)]
    return relative_gain(*by_seed, higher_is_better=False)


def main() -> None:
    chosen = arguments(__doc__, rows=ROWS, seeds=SEEDS)
    records = Records(chosen.out)
    make(records, chosen.rows, chosen.seeds)
    show(tables(records.rows))


if __name__ == "__main__":
    main()
