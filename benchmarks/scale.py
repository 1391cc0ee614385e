"""What each method moves, stores and takes at a scale that no machine here has: a model on paper, in code.

    python benchmarks/scale.py --out benchmarks/results/scale-model.md

docs/scale.md states the assumptions and reads the result.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import log2
from pathlib import Path

FLOAT = 4  # bytes; everything in float32


@dataclass(frozen=True)
class Hardware:
    """One accelerator of a cluster, at rates that large kernels reach."""

    flops: float = 2e14  # dense products per second (TF32, half of a data sheet's figure)
    memory: float = 2.7e12  # bytes per second (80 % of 3.35 TB/s)
    network: float = 4e10  # bytes per second and rank (80 % of 400 Gb/s)
    latency: float = 2e-5  # seconds per hop of a collective


@dataclass(frozen=True)
class Workload:
    """A ranker's step; ``batch`` is that of all ranks together."""

    tasks: int
    ranks: int
    batch: int = 65_536
    shared: float = 1e8  # dense parameters upstream of the fork
    heads: float = 1e6  # parameters of each task's tower
    representation: int = 4096  # numbers per example at the fork
    embedded: int = 26 * 128  # numbers per example that the tables give
    every: int = 10  # PUB's K

    @property
    def rows(self) -> float:
        return self.batch / self.ranks


@dataclass(frozen=True)
class Cost:
    """Of one step, beside or including the plain sum's, per rank.

    Attributes:
        flops: in dense products, all passes.
        memory: bytes read and written at the fork or for updates, beyond the plain sum's.
        overlapped: bytes all-reduced while the backward pass goes on.
        exposed: bytes all-reduced while nothing else goes on.
        hops: collectives that have to be waited for.
        held: bytes held beyond the plain sum's, at the worst moment, optimizer state included.
    """

    flops: float
    memory: float = 0.0
    overlapped: float = 0.0
    exposed: float = 0.0
    hops: int = 0
    held: float = 0.0


def costs(w: Workload) -> dict[str, Cost]:
    """Every method's cost; a forward pass is 2 operations per parameter and example, a backward pass 4."""
    dense = w.shared + w.tasks * w.heads
    forward, backward = 2 * dense * w.rows, 4 * dense * w.rows
    again = 4 * w.shared * w.rows  # one more pass through the shared layers
    towers = 4 * w.tasks * w.heads * w.rows
    z = FLOAT * w.rows * w.representation
    plain = forward + backward
    gradients, of_tasks = FLOAT * dense, FLOAT * (w.tasks * w.shared + w.tasks * w.heads)
    gram = FLOAT * w.tasks**2
    fork_memory = 3 * w.tasks * z  # into the workspace and out of it again, and once more for the product
    share = 1 / w.every
    return {
        "plain sum": Cost(plain, overlapped=gradients),
        "MultiBalance": Cost(plain, fork_memory, gradients, exposed=gram, hops=1, held=(w.tasks - 1) * z),
        "MultiBalance, overlap": Cost(plain, fork_memory, gradients + gram, held=(w.tasks - 1) * z),
        "PUB": Cost(
            plain + towers + share * (w.tasks - 1) * again,
            share * 6 * of_tasks,
            exposed=share * of_tasks + (1 - share) * gradients,
            hops=2,
            held=2 * of_tasks,
        ),
        "PUB, authors' form": Cost(
            plain + (w.tasks - 1) * again, 6 * of_tasks, exposed=of_tasks, hops=2, held=2 * of_tasks
        ),
        "AdaTask": Cost(
            plain + (w.tasks - 1) * again,
            8 * of_tasks,
            exposed=of_tasks,
            hops=2,
            held=2 * of_tasks + 2 * FLOAT * (w.tasks - 1) * w.shared,
        ),
        "gradients of parameters (MGDA, UPGrad)": Cost(
            plain + (w.tasks - 1) * again, 3 * of_tasks, exposed=of_tasks, hops=1, held=of_tasks
        ),
    }


def seconds(cost: Cost, w: Workload, hardware: Hardware) -> float:
    """A step's time without its embedding tables, which are alike for all."""
    ring = 2 * (w.ranks - 1) / w.ranks / hardware.network
    compute = cost.flops / hardware.flops
    return (
        max(compute, cost.overlapped * ring)
        + cost.memory / hardware.memory
        + cost.exposed * ring
        + cost.hops * 2 * log2(w.ranks) * hardware.latency
    )


def second_pass_through_tables(w: Workload) -> float:
    """Bytes per rank that one more backward pass through sharded tables would send, which no method here makes."""
    return FLOAT * w.rows * w.embedded


def tables(hardware: Hardware, sizes: list[int], ranks: list[int]) -> str:
    lines = []
    names = list(costs(Workload(2, 8)))
    for count in ranks:
        plain = seconds(costs(Workload(2, count))["plain sum"], Workload(2, count), hardware)
        lines += [
            f"## {count} ranks, {int(Workload(2, count).rows):,} examples each",
            "",
            f"The plain sum with 2 tasks: {1e3 * plain:.2f} ms. Times over the plain sum with as many tasks; in",
            "brackets what is held beyond it, per rank.",
            "",
            "| method | " + " | ".join(f"M = {size}" for size in sizes) + " |",
            "|---|" + "---:|" * len(sizes),
        ]
        for name in names[1:]:
            cells = []
            for size in sizes:
                w = Workload(size, count)
                found = costs(w)
                ratio = seconds(found[name], w, hardware) / seconds(found["plain sum"], w, hardware)
                cells.append(f"×{ratio:.2f} ({found[name].held / 1e9:.1f} GB)")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    chosen = arguments.parse_args()
    hardware = Hardware()
    head = [
        "# Step times at scale, on paper",
        "",
        f"Written by `python {' '.join(sys.argv)}`: a model, not a measurement. {hardware};",
        f"{Workload(0, 1)} with tasks and ranks as below.",
        "",
    ]
    chosen.out.write_text("\n".join(head) + tables(hardware, [2, 4, 8, 16, 32, 64], [8, 64, 256, 1024]))


if __name__ == "__main__":
    main()
