"""Measures what balancing costs by the number of tasks, the batch size and PUB's `update_every`.

    python benchmarks/questions/timing.py --out benchmarks/results/questions-timing.json

Run it on a machine that does nothing else: the second row of each table compares equal weights with themselves, so it
shows what the machine's noise does to the figures. Blocks of steps are interleaved with those of equal weights, on
batches of the data that the questions were trained on.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import many_tasks
import torch
from records import Record, Tables, markdown, show

from equipoise import data
from equipoise.comparison.throughput import throughput_ratio
from equipoise.data import Dataset
from equipoise.measuring import cpu_name
from equipoise.methods import parse_method
from equipoise.settings import TrainingSettings
from equipoise.training import Learner

NOISE = "equal weights again"
FORK = {"equal": NOISE, "multibalance": "MultiBalance", "multibalance-no-direction": "MultiBalance, no direction"}
UPDATES = {
    "equal": NOISE,
    "pub:update_every=1": "PUB, α solved in every step",
    "pub": "PUB, every 10",
    "pub-exact:update_every=1": "PUB (exact), α solved in every step",
    "pub-exact": "PUB (exact), every 10",
    "pub-exact:update_every=100": "PUB (exact), every 100",
}
TASKS, BATCH_SIZES = (2, 8, 32, 128), (1024, 4096, 16_384, 65_536)
BATCHES = 4


def ratios(dataset: Dataset, batch_size: int, methods: Mapping[str, str], steps: int, seconds: float) -> Record:
    """Return the throughput of each method over that of equal weights, with its 95 % interval."""
    settings = TrainingSettings.of(lr=0.01, table_decay=1.0)
    batches = list(islice(dataset.train.batches(batch_size), BATCHES))

    def learner(method: str) -> Learner:
        return Learner(dataset.schema, parse_method(method), settings)

    found = {}
    for method, label in methods.items():
        ratio = throughput_ratio(learner(method), learner("equal"), batches, steps=steps, seconds=seconds)
        found[label] = [ratio.ratio, ratio.low, ratio.high]
    return found


def measure(tasks: tuple[int, ...], batch_sizes: tuple[int, ...], rows: int, seconds: float) -> Record:
    torch.set_num_threads(1)
    journey = data.load("complete-journey", rows=rows)
    return {
        "machine": f"{cpu_name()}, torch {torch.__version__}, Python {platform.python_version()}, one thread",
        "number of tasks": {
            str(count): ratios(many_tasks.load(tasks=count, rows=10_000), 512, FORK, 10, seconds) for count in tasks
        },
        "batch size": {
            str(size): ratios(journey, size, FORK, 2 if size > 8192 else 10, seconds) for size in batch_sizes
        },
        "update_every": {"2048": ratios(journey, 2048, UPDATES, 100, seconds)},
    }


def tables(found: Mapping[str, Any]) -> Tables:
    """Return a table for each question; rates are throughputs over that of equal weights."""
    return {
        f"cost by {question}": markdown(
            [{"number of tasks": "tasks", "batch size": "rows per batch", "update_every": "rows per batch"}[question],
             *next(iter(rows.values()))],
            [[value, *(f"× {mid:.3f} ({low:.3f} to {high:.3f})" for mid, low, high in of.values())]
             for value, of in rows.items()],
        )
        for question, rows in found.items()
        if question != "machine"
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--seconds", type=float, default=10.0, help="of each comparison of two methods, about")
    chosen = arguments.parse_args()
    found = measure(TASKS, BATCH_SIZES, 600_000, chosen.seconds)
    chosen.out.write_text(json.dumps(found, indent=1) + "\n")
    show(tables(found))


if __name__ == "__main__":
    main()
