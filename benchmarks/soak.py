"""Growth of memory and drift of step times over a long training with each method in turn.

    python benchmarks/soak.py --out benchmarks/results/soak-cpu.json

Batches of the generated funnel, the same ones over and over; every method gets an equal share of the steps in one
process. After a warm-up its steps are made in equal parts. Growth is the resident memory of the process after the last
part over that after the first. A machine's speed changes over minutes by more than a drift would, so a second learner
makes ten steps after every hundred of the first: drift is that of the ratio of their median step times, the slope of a
line through all parts times the length of the line.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from scipy.stats import linregress, t

from equipoise.data import load
from equipoise.measuring import cpu_name
from equipoise.schema import Batch
from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, Learner
from result_files import write_result

PARTS = 20
BATCHES = 50
WARM_UP, BLOCK, BLOCK_BESIDE = 1000, 100, 10  # ten steps hold one of PUB's solves
PAGE = os.sysconf("SC_PAGE_SIZE")

Stepper = Callable[[], float]


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def timed_step(learner: Learner, batches: Iterator[Batch]) -> float:
    started = time.perf_counter()
    losses = learner.step(next(batches))
    learner.read()
    seconds = time.perf_counter() - started
    assert bool(losses.isfinite().all())
    return seconds


def soak(name: str, steps: int, batch_size: int) -> dict[str, Any]:
    dataset = load("funnel", rows=2 * BATCHES * batch_size)
    kept = list(islice(dataset.train.batches(batch_size), BATCHES))

    def learner() -> Stepper:
        made = Learner(dataset.schema, METHODS[name], TrainingSettings.of(lr=1e-4, seed=0))
        return partial(timed_step, made, cycle(kept))

    step, beside = learner(), learner()
    for _ in range(WARM_UP):
        step()
    for _ in range(BLOCK_BESIDE):
        beside()
    memory, medians, ratios = [], [], []
    for _ in range(PARTS):
        of_step, of_beside = [], []
        for _ in range(steps // PARTS // BLOCK):
            of_step += [step() for _ in range(BLOCK)]
            of_beside += [beside() for _ in range(BLOCK_BESIDE)]
        gc.collect()
        memory.append(resident())
        medians.append(1e3 * statistics.median(of_step))
        ratios.append(statistics.median(of_step) / statistics.median(of_beside))
    line = linregress(range(PARTS), ratios)
    half = t.ppf(0.975, PARTS - 2) * line.stderr
    return {
        "method": name, "steps": steps, "memory": memory, "median_ms": medians, "ratio": ratios,
        "memory_growth": memory[-1] / memory[0] - 1,
        "drift": [(PARTS - 1) * (line.slope + shift) for shift in (0.0, -half, half)],
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--steps", type=int, default=200_000, help="over all methods")
    arguments.add_argument("--methods", type=lambda names: names.split(","), default=list(METHODS))
    arguments.add_argument("--batch-size", type=int, default=128)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in chosen.methods:
        share = ceil(chosen.steps / len(chosen.methods) / PARTS / BLOCK) * PARTS * BLOCK
        rows.append(soak(name, share, chosen.batch_size))
        print(" | ".join(cells(rows[-1])), flush=True)
    if chosen.out is not None:
        result = {
            "command": " ".join(["python", *sys.argv]), "machine": cpu_name(), "torch": torch.__version__,
            "batch_size": chosen.batch_size, "rows": rows,
        }  # fmt: skip
        write_result(chosen.out, result, markdown(result))


def cells(row: dict[str, Any]) -> list[str]:
    drift, low, high = (100 * value for value in row["drift"])
    return [
        row["method"], f"{row['steps']:,}", f"{row['memory'][-1] / 1e6:.0f}", f"{100 * row['memory_growth']:+.2f} %",
        f"{statistics.median(row['median_ms']):.2f}", f"{statistics.median(row['ratio']):.3f}",
        f"{drift:+.1f} % ({low:+.1f} to {high:+.1f})",
    ]  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    total = sum(row["steps"] for row in result["rows"])
    lines = [
        f"# {total:,} steps, one method after the other: {result['machine']}, 1 thread",
        "",
        f"Generated funnel, batches of {result['batch_size']}, torch {result['torch']}; written by",
        f"`{result['command']}`. Each method's steps in {PARTS} parts after a warm-up.",
        "",
        "Growth: of the process's resident memory from the end of the first part to that of the last. Ratio: median",
        "step time over that of a second learner, which makes ten steps after every hundred of the first; its median",
        "over the parts. Drift: how far that ratio goes from the first part to the last by a line through all, with",
        "its 95 % interval.",
        "",
        "| method | steps | resident, MB | growth | median step, ms | ratio | drift |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {' | '.join(cells(row))} |" for row in result["rows"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
