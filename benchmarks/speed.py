"""Cost of balancing: whole training steps against the plain sum of the losses, interleaved in one process.

    python benchmarks/speed.py --out benchmarks/results/speed-cpu.json

A round takes one step of every contender on the same batch, in an order that is drawn anew; a contender's ratio to the
plain sum is taken round by round, and the median over the rounds is quoted with an interval by order statistics. A
second plain sum runs among the contenders: its ratio shows what this machine's noise alone does to the figure. The
ratio of the sums of all steps is given too: PUB does more in one step out of ten, which a median does not see.

Needs torch; torchjd's methods are measured where it is installed.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise import PUB, Monitor, MultiBalance
from equipoise.forks import Bargaining
from equipoise.measuring import cpu_name, median_interval
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import ForkFactory, SharedBottom
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from result_files import write_result

TORCHJD = find_spec("torchjd") is not None
if TORCHJD:
    from torchjd.aggregation import MGDA, UPGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

FIELDS, IDS, NUMERIC = 26, 10_000, 13
WARM_UP = 5
LEAST_PAIRS = 6  # the fewest that give a 95 % interval
BATCHED = 128  # so many tasks have batched towers, in every contender

Step = Callable[[Batch], None]


@dataclass(frozen=True)
class Size:
    """The part of a workload that is not the same in all.

    Attributes:
        half: compute in bfloat16 under autocast.
        replayed: capture a whole step in a CUDA graph, and time its replay.
    """

    batch: int
    dimension: int
    bottom: tuple[int, ...] = (512, 256, 128)
    half: bool = False
    replayed: bool = False

    def __str__(self) -> str:
        how = f"{', bfloat16' if self.half else ''}{', replayed from a CUDA graph' if self.replayed else ''}"
        return f"batch {self.batch}, dimension {self.dimension}, bottom {'-'.join(map(str, self.bottom))}{how}"


WORKLOADS = {
    "cpu": Size(4096, 16),
    "cuda": Size(65_536, 64),
    "large": Size(65_536, 64, (8192, 8192, 2048, 256), half=True),  # 1e8 dense parameters
    "small": Size(4096, 16),  # the host takes longer to launch than the device to compute
    "graph": Size(65_536, 64, replayed=True),
}


class Features(torch.nn.Module):
    """Passes the shared tensor on and keeps it, because torchjd differentiates with respect to it."""

    def forward(self, shared: Tensor) -> tuple[Tensor, ...]:
        self.shared = shared
        return (shared,) * self.tasks

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks


class BatchedTowers(torch.nn.Module):
    """A shared bottom with the towers of ``net`` as batched products over the stacked copies of its fork."""

    def __init__(self, net: SharedBottom) -> None:
        super().__init__()
        self.schema, self.embedding, self.bottom, self.fork = net.schema, net.embedding, net.bottom, net.fork
        towers = [[layer for layer in head if isinstance(layer, torch.nn.Linear)] for head in net.heads]
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for layer in zip(*towers, strict=True):
            self.weights.append(torch.stack([own.weight.detach().T for own in layer]))
            self.biases.append(torch.stack([own.bias.detach().unsqueeze(0) for own in layer]))

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        found = self.fork.stacked(self.bottom(self.embedding(categorical, numeric)))
        found = torch.baddbmm(self.biases[0], found, self.weights[0]).relu()
        return torch.baddbmm(self.biases[1], found, self.weights[1]).squeeze(2).unbind()


def schema(tasks: int) -> Schema:
    return Schema(
        [Categorical(f"field{field}", IDS) for field in range(FIELDS)],
        [Numeric(f"number{number}") for number in range(NUMERIC)],
        [Task(f"task{task}") for task in range(tasks)],
    )


def model(tasks: int, size: Size, device: str, fork: ForkFactory | None) -> SharedBottom | BatchedTowers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = SharedBottom(schema(tasks), fork=fork, embedding_dim=size.dimension, bottom=size.bottom, tower=(64,))
    return (BatchedTowers(built) if tasks >= BATCHED else built).to(device)


def plain(tasks: int, size: Size, device: str, fork: ForkFactory | None = None, *, monitored: bool = False) -> Step:
    net = model(tasks, size, device, fork)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    monitor = Monitor(net) if monitored else None

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=size.half):
            losses = task_losses(net(batch.categorical, batch.numeric), batch.labels, net.schema.tasks)
        sum(losses).backward()
        optimizer.step()
        if monitor is not None:
            monitor.read()

    return step


def pub(tasks: int, size: Size, device: str, **options: str | int) -> Step:
    net = model(tasks, size, device, None)
    optimizer = PUB(torch.optim.SGD(net.parameters(), lr=0.01), shared=list(net.shared_parameters()), **options)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        logits = net(batch.categorical, batch.numeric)
        optimizer.backward(task_losses(logits, batch.labels, net.schema.tasks))
        optimizer.step()

    return step


def jacobian_descent(tasks: int, size: Size, device: str, aggregator: torch.nn.Module) -> Step:
    features = Features(tasks)
    net = model(tasks, size, device, lambda: features)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    shared = list(net.shared_parameters())
    towers = [list(net.task_parameters(task)) for task in range(tasks)]

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        losses = task_losses(net(batch.categorical, batch.numeric), batch.labels, net.schema.tasks)
        mtl_backward(losses, features=features.shared, tasks_params=towers, shared_params=shared)
        jac_to_grad(shared, aggregator)
        optimizer.step()

    return step


def contenders(tasks: int, size: Size, device: str, names: list[str]) -> dict[str, Step]:
    known: dict[str, Callable[[], Step]] = {
        "plain sum": lambda: plain(tasks, size, device),
        "plain sum again": lambda: plain(tasks, size, device),
        "MultiBalance": lambda: plain(tasks, size, device, lambda: MultiBalance(tasks)),
        "MultiBalance, one step in 4": lambda: plain(tasks, size, device, lambda: MultiBalance(tasks, gram_every=4)),
        "MultiBalance, monitored": lambda: plain(tasks, size, device, lambda: MultiBalance(tasks), monitored=True),
        "Nash-MTL": lambda: plain(tasks, size, device, lambda: Bargaining(tasks)),
        "PUB (exact)": lambda: pub(tasks, size, device, solve_on="all"),
        "PUB": lambda: pub(tasks, size, device),
        "PUB (authors' form)": lambda: pub(tasks, size, device, form="authors"),
    }
    if TORCHJD:
        known["torchjd MGDA"] = lambda: jacobian_descent(tasks, size, device, MGDA())
        known["torchjd UPGrad"] = lambda: jacobian_descent(tasks, size, device, UPGrad())
    return {name: build() for name, build in known.items() if name in ("plain sum", *names)}


def replayed(step: Step, batch: Batch) -> Step:
    """Return the replay of the step, captured on this batch."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            step(batch)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(batch)
    return lambda _: graph.replay()


def batches(tasks: int, size: Size, device: str, count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randint(IDS, (size.batch, FIELDS), generator=generator),
            torch.randn(size.batch, NUMERIC, generator=generator),
            torch.randint(2, (size.batch, tasks), generator=generator).float(),
            torch.ones(size.batch),
        ).to(device)
        for _ in range(count)
    ]


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def measure(
    workload: str, tasks: int, device: str, rounds: int, names: list[str], *, clock: str, seconds_at_most: float
) -> list[dict[str, Any]]:
    size = WORKLOADS[workload]
    steps = contenders(tasks, size, device, names)
    data = batches(tasks, size, device)
    if size.replayed:
        steps = {name: replayed(step, data[0]) for name, step in steps.items()}
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds_at_most
    for turn in range(WARM_UP + rounds):
        if turn >= WARM_UP + LEAST_PAIRS and time.perf_counter() > end:
            break
        for name in order.sample(list(steps), len(steps)):
            if device == "cuda":
                torch.cuda.synchronize()
            started = CLOCKS[clock]()
            steps[name](data[turn % len(data)])
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= WARM_UP:
                seconds[name].append(CLOCKS[clock]() - started)
    rows: list[dict[str, Any]] = []
    for name in steps:
        ratios = [own / other for own, other in zip(seconds[name], seconds["plain sum"], strict=True)]
        low, high = median_interval(ratios)
        rows.append(
            {
                "workload": workload, "tasks": tasks, "contender": name,
                "ratio": statistics.median(ratios), "low": low, "high": high,
                "pairs": len(ratios), "mean_ratio": sum(seconds[name]) / sum(seconds["plain sum"]),
                "median_ms": 1e3 * statistics.median(seconds[name]),
            }
        )  # fmt: skip
    return rows


FORKS = ["plain sum again", "MultiBalance", "MultiBalance, one step in 4", "MultiBalance, monitored"]
OTHER_FORKS = ["Nash-MTL"]  # on an accelerator: its weights are hundreds of small kernels
OTHERS = ["PUB (exact)", "PUB", "PUB (authors' form)", *(["torchjd MGDA", "torchjd UPGrad"] if TORCHJD else [])]


def plan(chosen: argparse.Namespace) -> list[tuple[str, int, int, list[str]]]:
    """Return what is measured: workload, tasks, rounds, contenders."""
    device = chosen.device
    if chosen.contenders:
        return [(device, tasks, chosen.pairs, chosen.contenders) for tasks in (2, 8)]
    counts = (2, 8, 32, BATCHED) if device == "cpu" else (2, 8, 32)
    forks = [*FORKS, *OTHER_FORKS] if device == "cuda" else FORKS
    found = [(device, tasks, chosen.fork_pairs, forks) for tasks in counts]
    found += [(device, tasks, chosen.pairs, OTHERS) for tasks in (2, 8)]
    if device == "cuda":
        found += [
            (workload, tasks, chosen.fork_pairs, [*FORKS[:2], *(OTHER_FORKS if workload == "small" else [])])
            for workload in ("large", "small", "graph")
            for tasks in (2, 8)
        ]
    return [part for part in found if part[2]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument(
        "--fork-pairs", type=int, default=120, help="rounds of plain sums and forks, M = 2, 8, 32; 128 on a CPU"
    )
    arguments.add_argument("--pairs", type=int, default=100, help="rounds of plain sum, PUB and torchjd, M = 2, 8")
    arguments.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        choices=sorted({*FORKS, *OTHER_FORKS, *OTHERS}),
        default=[],
        help="these alone beside the plain sum, M = 2, 8",
    )
    arguments.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="processor: the time that this process computes, on a machine that has other work; with --threads 1",
    )
    arguments.add_argument("--seconds", type=float, default=math.inf, help="no round begins after that, but six")
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    rows: list[dict[str, Any]] = []
    for workload, tasks, rounds, names in (the_plan := plan(chosen)):
        limit = chosen.seconds / len(the_plan)
        for row in measure(workload, tasks, chosen.device, rounds, names, clock=chosen.clock, seconds_at_most=limit):
            rows.append(row)
            print(
                f"{workload:<5} M={row['tasks']:<3} {row['contender']:<28} x{row['ratio']:.4f} "
                f"[{row['low']:.4f}, {row['high']:.4f}]  x{row['mean_ratio']:.3f}  "
                f"{row['median_ms']:8.2f} ms  {row['pairs']} pairs",
                flush=True,
            )
    if chosen.out is not None:
        result = {
            "command": shlex.join(["python", *sys.argv]),
            "workload": f"{FIELDS} fields x {IDS} ids, {NUMERIC} numeric, "
            f"towers 64-1 (batched from {BATCHED} tasks on), SGD",
            "workloads": {row["workload"]: str(WORKLOADS[row["workload"]]) for row in rows},
            "machine": torch.cuda.get_device_name() if chosen.device == "cuda" else cpu_name(),
            "threads": chosen.threads,
            "clock": chosen.clock,
            "versions": {
                "python": platform.python_version(), "torch": torch.__version__,
                **({"torchjd": version("torchjd")} if TORCHJD else {}),
            },
            "rows": rows,
        }  # fmt: skip
        write_result(chosen.out, result, markdown(result))


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# Step time over that of the plain sum: {result['machine']}, {result['threads']} threads, "
        f"{result['clock']} clock",
        "",
        f"{result['workload']}; {', '.join(map(' '.join, result['versions'].items()))}.",
        *(f"`{name}`: {described}." for name, described in result["workloads"].items()),
        "Median over interleaved pairs with its 95 % interval, and the ratio of the sums of all steps;",
        f"written by `{result['command']}`.",
        "",
        "| workload | tasks | contender | ratio | interval | of the sums | pairs | plain step, ms |",
        "|---|---:|---|---:|---|---:|---:|---:|",
    ]
    plain_ms = 0.0
    for row in result["rows"]:
        if row["contender"] == "plain sum":  # the first row of each measurement
            plain_ms = row["median_ms"]
        else:
            interval = f"{row['low']:.4f} to {row['high']:.4f}"
            lines.append(
                f"| {row['workload']} | {row['tasks']} | {row['contender']} | ×{row['ratio']:.4f} | {interval} "
                f"| ×{row['mean_ratio']:.3f} | {row['pairs']} | {plain_ms:.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
