"""Time of MultiBalance at a fork on a CPU: of its step alone, and of the fork's whole backward pass.

    python benchmarks/fork_step.py --out benchmarks/results/fork-backward-cpu.json

Both with the kernels in C and in PyTorch's operations. The backward pass is set against that of the plain sum, which
adds the tasks' gradients up, one after the other in an order that is drawn anew; the median of their ratios is quoted
with an interval by order statistics. The step finds the weights of a Gram matrix and moves the state on; it is timed in
a tight loop ("warm") and after 64 MB of other memory have been read ("swept"), as it finds the caches in a training;
medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from equipoise import MultiBalance
from equipoise.forks import gram, multibalance
from equipoise.forks.kernel_choice import LIBRARY
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


def without_kernels() -> AbstractContextManager[object]:
    """Let forks take PyTorch's operations."""
    changed = ExitStack()
    for module in (gram, multibalance):
        changed.enter_context(patch.object(module, "kernels_for", lambda _: None))
    return changed


FORMS: dict[str, Callable[[], AbstractContextManager[object]]] = {"in C": nullcontext, "operations": without_kernels}


def backward(fork: nn.Module, gradients: list[Tensor]) -> float:
    """Return the seconds of one backward pass from the branches of a fork to what it forks."""
    branches = fork(torch.zeros(SHAPE, requires_grad=True).view(SHAPE))
    return seconds(lambda: torch.autograd.backward(branches, gradients))


def measure(tasks: int, rounds: int) -> list[dict[str, Any]]:
    """Measure a fork of some tasks, in each form."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(SHAPE, generator=generator) for _ in range(tasks)]
    rows = torch.stack([gradient.flatten() for gradient in gradients])
    products, balanced, plain = rows @ rows.T, MultiBalance(tasks), Unforked(tasks)
    order, sweep = random.Random(0), torch.ones(1 << 24)
    times: dict[str, list[float]] = {form: [] for form in (*FORMS, "plain sum")}
    for _ in range(rounds):
        for form in order.sample(list(times), len(times)):
            with FORMS.get(form, nullcontext)():
                times[form].append(backward(plain if form == "plain sum" else balanced, gradients))
    found = []
    for form, taken in FORMS.items():
        ratios = [own / other for own, other in zip(times[form], times["plain sum"], strict=True)][rounds // 10 :]
        low, high = median_interval(ratios)
        with torch.no_grad(), taken():
            step = {
                "step_warm_us": median_us(rounds, lambda: balanced.solve_step(products)),
                "step_swept_us": median_us(rounds, lambda: balanced.solve_step(products), sweep.sum),
            }
        found.append({
            "tasks": tasks, "form": form, "ratio": statistics.median(ratios), "low": low, "high": high,
            "pairs": len(ratios), "backward_us": round(1e6 * statistics.median(times[form]), 1), **step,
        })  # fmt: skip
    return found


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# The backward pass of a MultiBalance fork: {result['machine']}, one thread", "",
        f"torch {result['torch']}, float32, shared tensor {SHAPE[0]} × {SHAPE[1]}. The ratio is that of the backward",
        "pass to the one of the plain sum: the median over interleaved pairs with its 95 % interval. The step finds",
        "the weights of a Gram matrix.",
        f"Written by `{result['command']}`.", "",
        "| tasks | form | ratio | interval | backward (µs) | step, warm caches (µs) | after reading 64 MB |",
        "|---:|---|---:|---|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {row['tasks']} | {row['form']} | ×{row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} "
        f"| {row['backward_us']} | {row['step_warm_us']} | {row['step_swept_us']} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=100)
    arguments.add_argument("--out", type=Path, help="written with the endings .json and .md")
    chosen = arguments.parse_args()
    if not LIBRARY.exists():
        arguments.error("equipoise was installed without its kernels in C: install it where there is a C compiler.")
    torch.set_num_threads(1)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": cpu_name(),
        "torch": torch.__version__,
        "rows": [row for tasks in TASKS for row in measure(tasks, chosen.rounds)],
    }
    print(markdown(result))
    if chosen.out is not None:
        write_result(chosen.out, result, markdown(result))


if __name__ == "__main__":
    main()
