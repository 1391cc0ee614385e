"""Time of MultiBalance at a fork on a CPU: of ``weigh`` alone, and of the fork's whole backward pass.

    python benchmarks/fork_step.py --out benchmarks/results/fork-backward-cpu.json

The backward pass is set against that of the plain sum, which adds the tasks' gradients up, in pairs in an order that is
drawn anew; the median of their ratios is quoted with an interval by order statistics. ``weigh`` is timed in a
tight loop ("warm") and after 64 MB of other memory have been read ("swept"), as it finds the caches in a training step;
medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise import MultiBalance
from equipoise.measuring import cpu_name, median_interval
from equipoise.ranking.models.base import Unforked
from result_files import write_result

SHAPE = (4096, 128)
TASKS = (2, 8, 32)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_us(rounds: int, call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    times = []
    for _ in range(rounds):
        before()
        times.append(seconds(call))
    return round(1e6 * statistics.median(times[rounds // 10 :]), 1)


def backward(fork: nn.Module, gradients: list[Tensor]) -> float:
    """Return the seconds of one backward pass from the branches of a fork to what it forks."""
    branches = fork(torch.zeros(SHAPE, requires_grad=True).view(SHAPE))
    return seconds(lambda: torch.autograd.backward(branches, gradients))


def measure(tasks: int, rounds: int) -> dict[str, Any]:
    """Measure a fork of some tasks."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(SHAPE, generator=generator) for _ in range(tasks)]
    rows = torch.stack([gradient.flatten() for gradient in gradients])
    gram, present = rows @ rows.T, torch.ones(tasks, dtype=torch.bool)
    balanced, plain = MultiBalance(tasks), Unforked(tasks)
    order, sweep = random.Random(0), torch.ones(1 << 24)
    times: dict[nn.Module, list[float]] = {balanced: [], plain: []}
    for _ in range(rounds):
        for fork in order.sample(list(times), 2):
            times[fork].append(backward(fork, gradients))
    ratios = [own / other for own, other in zip(*times.values(), strict=True)][rounds // 10 :]
    low, high = median_interval(ratios)
    with torch.no_grad():
        weigh = {
            "weigh_warm_us": median_us(rounds, lambda: balanced.weigh(gram, present)),
            "weigh_swept_us": median_us(rounds, lambda: balanced.weigh(gram, present), sweep.sum),
        }
    return {
        "tasks": tasks, "ratio": statistics.median(ratios), "low": low, "high": high, "pairs": len(ratios),
        "backward_us": round(1e6 * statistics.median(times[balanced]), 1), **weigh,
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# The backward pass of a MultiBalance fork: {result['machine']}, one thread", "",
        f"torch {result['torch']}, float32, shared tensor {SHAPE[0]} × {SHAPE[1]}. The ratio is that of the backward",
        "pass to the one of the plain sum: the median over interleaved pairs with its 95 % interval.",
        f"Written by `{result['command']}`.", "",
        "| tasks | ratio | interval | backward (µs) | `weigh`, warm caches (µs) | after reading 64 MB |",
        "|---:|---:|---|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {row['tasks']} | ×{row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {row['backward_us']} "
        f"| {row['weigh_warm_us']} | {row['weigh_swept_us']} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=100)
    arguments.add_argument("--out", type=Path, help="written with the endings .json and .md")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": cpu_name(),
        "torch": torch.__version__,
        "rows": [measure(tasks, chosen.rounds) for tasks in TASKS],
    }
    print(markdown(result))
    if chosen.out is not None:
        write_result(chosen.out, result, markdown(result))


if __name__ == "__main__":
    main()
