"""What collectives take between processes of one machine, and what the model of scale.py makes of it.

    python benchmarks/scale_ranks.py --out benchmarks/results/scale-ranks.md

Latency and bandwidth are taken from 2 ranks; those of 4 ranks are then predicted by the model's formula and measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from math import log2
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from equipoise.compare.describe import cpu_name

SIZES = [4, 64, 1024, 4096, 1_000_000, 10_000_000]  # numbers; the first four are M² for M = 2, 8, 32, 64
REPEATS = 31


def work(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=(Path(folder) / f"rendezvous{ranks}").as_uri(), rank=rank, world_size=ranks
    )
    torch.set_num_threads(1)
    medians = {}
    for size in SIZES:
        numbers, seconds = torch.ones(size), []
        for _ in range(REPEATS):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(numbers)
            seconds.append(time.perf_counter() - started)
            numbers.fill_(1.0)
        medians[size] = statistics.median(seconds)
    if rank == 0:
        torch.save(medians, Path(folder) / f"{ranks}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (2, 4):
            mp.spawn(work, args=(ranks, folder), nprocs=ranks)
        two, four = (torch.load(Path(folder) / f"{ranks}.pt") for ranks in (2, 4))
    latency = two[SIZES[0]] / 2  # the model's 2 log2(2) hops
    largest = SIZES[-1]
    bandwidth = 4 * largest / (two[largest] - 2 * latency)  # 2 (W - 1) / W is 1 for two ranks
    lines = [
        f"# All-reduces between processes of one machine: {cpu_name()}, 2 cores, gloo",
        "",
        f"Written by `python {' '.join(sys.argv)}`; medians of {REPEATS}. Four ranks share two cores. From two ranks:",
        f"{1e6 * latency:.0f} µs a hop, {bandwidth / 1e9:.2f} GB/s.",
        "",
        "| numbers | 2 ranks | 4 ranks | 4 ranks by the model |",
        "|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        predicted = 2 * log2(4) * latency + 2 * 3 / 4 * 4 * size / bandwidth
        lines.append(f"| {size:,} | {1e3 * two[size]:.3f} ms | {1e3 * four[size]:.3f} ms | {1e3 * predicted:.3f} ms |")
    chosen.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
