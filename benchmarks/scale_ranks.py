"""Time of collectives and methods between processes of one machine, compared with the model of scale.py.

    python benchmarks/scale_ranks.py --out benchmarks/results/scale-ranks.md

Latency (of the four smallest) and bandwidth (of the largest) are taken from 2 ranks; those of 4 ranks are then
predicted by the model's formula and measured. With them and the rates of a matrix product and of a copy, the model
says what each method adds to a step; that over the measured step of equal weights is its predicted ratio.
Methods train under DistributedDataParallel, in turn, a few steps each per round; a ratio is that to equal weights in
the same round. What a method sends is counted where Python sends it; what DistributedDataParallel averages itself is
the size of all gradients.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from math import log2
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from equipoise.data import load
from equipoise.forks import fork as fork_module
from equipoise.measuring import cpu_name, median_interval
from equipoise.settings import TrainingSettings
from equipoise.training import Learner, World, parse_method
from scale import FLOAT, Hardware, Workload, costs
from scale import seconds as predicted_seconds

SIZES = [4, 64, 1024, 4096, 1_000_000, 10_000_000]  # numbers; the first four are M² for M = 2, 8, 32, 64
REPEATS, WARM_UP = 101, 10
METHODS = {
    "equal": "plain sum", "multibalance": "MultiBalance", "multibalance:overlap=true": "MultiBalance, overlap",
    "pub-exact": "PUB (exact)", "pub-authors": "PUB, authors' form", "adatask": "AdaTask",
}  # fmt: skip
"""Those measured, and what scale.py calls them."""
ROUNDS, STEPS, BATCH = 21, 10, 2048  # ten steps hold one of PUB's solves
BOTTOM = [512, 256]


def all_reduces() -> dict[int, float]:
    """Return the median seconds of an all-reduce by its number of elements."""
    medians = {}
    for size in SIZES:
        numbers, seconds = torch.ones(size), []
        for _ in range(WARM_UP + REPEATS):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(numbers)
            seconds.append(time.perf_counter() - started)
            numbers.fill_(1.0)
        medians[size] = statistics.median(seconds[WARM_UP:])
    return medians


class Sent:
    """Counts the elements of all-reduces within the block, by both of PyTorch's calls for one."""

    def __init__(self) -> None:
        self.calls = self.bytes = 0
        self._known = [(dist, dist.all_reduce), (fork_module, fork_module.all_reduce)]

    def __enter__(self) -> Sent:
        for module, function in self._known:
            module.all_reduce = partial(self._count, function)
        return self

    def __exit__(self, *_: object) -> None:
        for module, function in self._known:
            module.all_reduce = function

    def _count(self, function: Callable, tensor: torch.Tensor, *rest: object, **options: object) -> object:
        self.calls += 1
        self.bytes += tensor.numel() * tensor.element_size()
        return function(tensor, *rest, **options)


def methods(rank: int, ranks: int, rows: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each method's step with so many rows over all ranks, and the elements it sends."""
    dataset = load("funnel", rows=40 * BATCH)
    world = World(rank, ranks)
    settings = TrainingSettings.of(lr=1e-3, model_options={"bottom": BOTTOM})
    learners = {name: Learner(dataset.schema, parse_method(name), settings, world=world) for name in METHODS}
    batches = cycle(list(islice(dataset.train.batches(rows), 20)))
    found: dict[str, dict[str, float]] = {}
    for name, learner in learners.items():
        learner.step(next(batches))
        with Sent() as sent:
            for batch in islice(batches, STEPS):
                learner.step(batch)
        (member,) = learner._members
        by_engine = getattr(member.module, "require_backward_grad_sync", False)
        engine = sum(4 * p.numel() for p in member.module.parameters()) if by_engine else 0
        found[name] = {"calls": sent.calls / STEPS, "own": sent.bytes / STEPS, "engine": engine}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(ROUNDS):
        for name, learner in learners.items():
            if ranks > 1:
                dist.barrier()
            started = time.perf_counter()
            for batch in islice(batches, STEPS):
                learner.step(batch)
            seconds[name].append((time.perf_counter() - started) / STEPS)
    for name in METHODS:
        ratios = [own / equal for own, equal in zip(seconds[name], seconds["equal"], strict=True)]
        low, high = median_interval(ratios)
        found[name] |= {"ms": 1e3 * statistics.median(seconds[name]), "ratio": statistics.median(ratios)}
        found[name] |= {"low": low, "high": high}
    return found


def work(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=(Path(folder) / f"rendezvous{ranks}").as_uri(), rank=rank, world_size=ranks
    )
    torch.set_num_threads(1)
    found = {"all_reduces": all_reduces(), "methods": methods(rank, ranks, BATCH)}
    if rank == 0:
        torch.save(found, Path(folder) / f"{ranks}.pt")
    dist.barrier()
    dist.barrier()  # gloo's threads now and then abort a process that ends at once
    dist.destroy_process_group()


def rate(work: Callable[[], object], amount: float) -> float:
    """Return the amount per second, by the median time of several calls."""
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return amount / statistics.median(seconds[WARM_UP:])


def calibrated(two: dict[int, float]) -> Hardware:
    """Return the rates of one thread of this machine, and of all-reduces between two ranks."""
    left, right, large = torch.ones(BATCH // 2, BOTTOM[0]), torch.ones(*BOTTOM), torch.ones(16_000_000)
    target, largest = torch.empty_like(large), SIZES[-1]
    latency = statistics.median(two[size] for size in SIZES[:4]) / 2  # the model's 2 log2(2) hops
    return Hardware(
        flops=rate(lambda: left @ right, 2 * left.numel() * BOTTOM[1]),
        memory=rate(lambda: target.copy_(large), 2 * FLOAT * large.numel()),
        network=FLOAT * largest / (two[largest] - 2 * latency),  # 2 (W - 1) / W is 1 for two ranks
        latency=latency,
    )


def workload(ranks: int, rows: int) -> Workload:
    """Return the workload that ``methods`` trains."""
    schema = load("funnel", rows=40 * BATCH).schema
    learner = Learner(
        schema, parse_method("equal"), TrainingSettings.of(lr=1e-3, seed=0, model_options={"bottom": BOTTOM})
    )
    sizes = {name: p.numel() for name, p in learner._members[0].model.named_parameters()}
    tasks = len(schema.tasks)
    return Workload(
        tasks, ranks, rows,
        shared=sum(size for name, size in sizes.items() if name.startswith("bottom")),
        head=sum(size for name, size in sizes.items() if name.startswith("heads")) / tasks,
        representation=BOTTOM[-1], features=len(schema.categorical), width=8,
        replicated=sizes["embedding.table.weight"], every=STEPS,
    )  # fmt: skip


def collectives_table(two: dict[int, float], four: dict[int, float], hardware: Hardware) -> list[str]:
    lines = [
        f"All-reduces, medians of {REPEATS}. From two ranks: {1e6 * hardware.latency:.0f} µs a hop, "
        f"{hardware.network / 1e9:.2f} GB/s.",
        "",
        "| numbers | 2 ranks | 4 ranks | 4 ranks by the model |",
        "|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        predicted = 2 * log2(4) * hardware.latency + 2 * 3 / 4 * FLOAT * size / hardware.network
        lines.append(f"| {size:,} | {1e3 * two[size]:.3f} ms | {1e3 * four[size]:.3f} ms | {1e3 * predicted:.3f} ms |")
    return lines


def methods_table(found: dict[str, dict[str, float]], w: Workload, hardware: Hardware) -> list[str]:
    lines = [
        "| method | ms a step | of equal weights | 95 % | by the model | its own all-reduces a step | their MB | "
        "the engine's MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    paper = costs(w)
    for name, row in found.items():
        added = predicted_seconds(paper[METHODS[name]], w, hardware) - predicted_seconds(
            paper["plain sum"], w, hardware
        )
        cells = [
            name, f"{row['ms']:.1f}", f"×{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}",
            f"×{1 + 1e3 * added / found['equal']['ms']:.3f}",
            f"{row['calls']:.1f}", f"{row['own'] / 1e6:.4f}", f"{row['engine'] / 1e6:.3f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (2, 4):
            mp.spawn(work, args=(ranks, folder), nprocs=ranks)
        two, four = (torch.load(Path(folder) / f"{ranks}.pt", weights_only=True) for ranks in (2, 4))
    torch.set_num_threads(1)
    alone, hardware = methods(0, 1, BATCH // 2), calibrated(two["all_reduces"])
    lines = [
        f"# Several processes of one machine: {cpu_name()}, 2 cores, gloo",
        "",
        f"Written by `python {' '.join(sys.argv)}`, torch {torch.__version__}. One thread per rank;",
        "four ranks share two cores, so that what a collective waits for there is mostly a core.",
        "",
        *collectives_table(two["all_reduces"], four["all_reduces"], hardware),
        "",
        f"Methods: generated funnel, four tasks, shared bottom 512-256, global batch {BATCH}, Adam, {ROUNDS} rounds of",
        f"{STEPS} steps of each; ratios are medians over rounds with their interval by order statistics. The model's",
        f"are for {hardware.flops / 1e9:.0f}e9 operations and {hardware.memory / 1e9:.1f} GB of traffic a second.",
        "",
        f"## In one process, with a batch of {BATCH // 2}, the share of one of two ranks",
        "",
        *methods_table(alone, workload(1, BATCH // 2), hardware),
        "",
        "## On 2 ranks",
        "",
        *methods_table(two["methods"], workload(2, BATCH), hardware),
        "",
        "## On 4 ranks",
        "",
        *methods_table(four["methods"], workload(4, BATCH), hardware),
    ]
    chosen.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
