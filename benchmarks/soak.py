"""A long training with every method in turn: does memory grow, do steps slow down?

    python benchmarks/soak.py --out benchmarks/results/soak-cpu.json

Batches of the generated funnel, the same ones over and over; every method gets an equal share of the steps in one
process. After a warm-up the resident memory of the process and the median step time are taken in equal parts; growth is
that of the last part over the first, drift the slope of a line through the parts' step times, over all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from equipoise.compare.describe import cpu_name
from equipoise.data import load
from equipoise.training import METHODS, Learner

PARTS = 10
BATCHES = 50
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process in memory, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def soak(name: str, steps: int, batch_size: int) -> dict[str, object]:
    dataset = load("funnel", rows=2 * BATCHES * batch_size)
    learner = Learner(dataset.schema, METHODS[name], model="shared-bottom", lr=1e-4, seed=0)
    batches = list(islice(dataset.train.batches(batch_size), BATCHES))
    for step in range(min(1000, steps // 10)):
        learner.step(batches[step % BATCHES])
        learner.read()
    memory, medians = [], []
    for _ in range(PARTS):
        seconds = []
        for step in range(steps // PARTS):
            started = time.perf_counter()
            losses = learner.step(batches[step % BATCHES])
            learner.read()
            seconds.append(time.perf_counter() - started)
        assert bool(losses.isfinite().all())
        gc.collect()
        memory.append(resident())
        medians.append(statistics.median(seconds))
    slope = statistics.linear_regression(range(PARTS), medians).slope
    return {
        "method": name, "steps": steps, "memory": memory, "median_ms": [1e3 * value for value in medians],
        "memory_growth": memory[-1] / memory[0] - 1, "drift": slope * (PARTS - 1) / statistics.mean(medians),
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--steps", type=int, default=200_000, help="over all methods")
    arguments.add_argument("--batch-size", type=int, default=128)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in METHODS:
        rows.append(soak(name, chosen.steps // len(METHODS) // PARTS * PARTS, chosen.batch_size))
        print(
            f"{name:26} {rows[-1]['steps']} steps  memory {100 * rows[-1]['memory_growth']:+.2f} %  "
            f"step time {100 * rows[-1]['drift']:+.2f} %",
            flush=True,
        )
    if chosen.out is not None:
        result = {
            "command": " ".join(["python", *sys.argv]), "machine": cpu_name(), "torch": torch.__version__,
            "batch_size": chosen.batch_size, "rows": rows,
        }  # fmt: skip
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")
        chosen.out.with_suffix(".md").write_text(markdown(result))


def markdown(result: dict) -> str:
    total = sum(row["steps"] for row in result["rows"])
    lines = [
        f"# {total:,} steps with every method in turn: {result['machine']}, 1 thread",
        "",
        f"Generated funnel, batches of {result['batch_size']}, torch {result['torch']}; written by",
        f"`{result['command']}`. Each method's steps in {PARTS} parts after a warm-up: growth is that",
        "of the last part over the first, drift that of a line through all parts' median step times.",
        "",
        "| method | steps | resident memory, MB | growth | median step, ms | drift |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = [
            row["method"], f"{row['steps']:,}", f"{row['memory'][-1] / 1e6:.0f}",
            f"{100 * row['memory_growth']:+.2f} %", f"{row['median_ms'][-1]:.2f}", f"{100 * row['drift']:+.1f} %",
        ]  # fmt: skip
        lines += [f"| {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
