"""Cost of every method: time of a training step and peak memory, over those of equal weights.

    python benchmarks/method_costs.py --out benchmarks/results/method-costs-cpu.json

The workload is small, where a method's own work weighs most: five tasks, batches of 2,048 rows, the shared bottom of
the default comparison. In a round every method takes one step on the same batch, in an order that is drawn anew; its
ratio to equal weights is taken round by round. Times are those of the processor, so that other programs do not count. A
second training with equal weights shows the noise.
"""

from __future__ import annotations

import argparse
import platform
import random
import shlex
import statistics
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from equipoise.comparison.throughput import peak_memory
from equipoise.errors import MisplacedForkWarning
from equipoise.measuring import cpu_name, median_interval
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, Learner
from result_files import write_result

TASKS, FIELDS, IDS, NUMBERS, ROWS = 5, 15, 200, 4, 2048
WARM_UP = 3
EQUAL, AGAIN = "equal", "equal again"


def schema() -> Schema:
    return Schema(
        [Categorical(f"field{field}", IDS) for field in range(FIELDS)],
        [Numeric(f"number{number}") for number in range(NUMBERS)],
        [Task(f"task{task}") for task in range(TASKS)],
    )


def learner(name: str) -> Learner:
    method = METHODS[EQUAL if name == AGAIN else name]
    return Learner(schema(), method, TrainingSettings.of(lr=1e-3, seed=0))


def batches(count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randint(IDS, (ROWS, FIELDS), generator=generator),
            torch.randn(ROWS, NUMBERS, generator=generator),
            torch.randint(2, (ROWS, TASKS), generator=generator).float(),
            torch.ones(ROWS),
        )
        for _ in range(count)
    ]


def measure(names: list[str], rounds: int) -> list[dict[str, Any]]:
    learners = {name: learner(name) for name in names}
    data, order = batches(), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP + rounds):
        for name in order.sample(names, len(names)):
            begun = time.process_time()
            learners[name].step(data[turn % len(data)])
            if turn >= WARM_UP:
                seconds[name].append(time.process_time() - begun)
    memory = {name: peak_memory(partial(learner, name), data[0]) for name in names}
    rows = []
    for name in names:
        ratios = [own / equal for own, equal in zip(seconds[name], seconds[EQUAL], strict=True)]
        low, high = median_interval(ratios)
        rows.append(
            {
                "method": name, "ratio": statistics.median(ratios), "low": low, "high": high, "pairs": len(ratios),
                "mean_ratio": sum(seconds[name]) / sum(seconds[EQUAL]), "ms": 1e3 * statistics.median(seconds[name]),
                "memory_ratio": memory[name] / memory[EQUAL],
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: row["mean_ratio"])


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# Step and memory of every method over those of equal weights: {result['machine']}, one thread", "",
        f"{result['workload']}; {', '.join(map(' '.join, result['versions'].items()))}.",
        "Processor time of interleaved steps: the ratio of the sums of all steps, and the median over rounds with its",
        "95 % interval, which leaves out what a method does in one step out of ten. Memory: the peak of the first two",
        f"steps. Written by `{result['command']}`.", "",
        "| method | time | median step | interval | memory |", "|---|---:|---:|---|---:|",
    ]  # fmt: skip
    lines += [
        f"| `{row['method']}` | ×{row['mean_ratio']:.2f} | ×{row['ratio']:.2f} | {row['low']:.2f} to {row['high']:.2f} "
        f"| ×{row['memory_ratio']:.2f} |"
        for row in result["rows"]
        if row["method"] != EQUAL
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--out", type=Path, required=True)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MisplacedForkWarning)
        rows = measure([AGAIN, *METHODS.usable()], chosen.rounds)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "workload": f"{TASKS} tasks, {FIELDS} fields x {IDS} ids, {NUMBERS} numeric, shared bottom, batch {ROWS}, Adam",
        "machine": cpu_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
    }
    write_result(chosen.out, result, markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
