"""A cost model: traffic, memory and time of each method at a scale that no machine here has.

    python benchmarks/scale.py --out benchmarks/results/scale-model.md

docs/scale.md states the assumptions and discusses the result; scale_ranks.py compares the model with measurements.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path

FLOAT = 4  # bytes; everything in float32
TASKS = [2, 4, 8, 16, 32, 64]
RANKS = [8, 64, 256, 1024]


@dataclass(frozen=True)
class Hardware:
    """One rank's processor and network, at rates that large kernels reach."""

    flops: float = 2e14  # of dense products per second (TF32, half of a data sheet's figure)
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
    head: float = 1e6  # parameters of each task's tower
    representation: int = 4096  # numbers per example at the fork
    features: int = 26  # lookups per example
    width: int = 128  # of a table's row
    table_rows: float = 1e9  # over all tables, which are sharded
    replicated: float = 0  # parameters of tables that every rank holds instead, with dense gradients
    every: int = 10  # PUB's K

    @property
    def last(self) -> float:
        """Parameters of the last shared layer, which is as wide as the one below it."""
        return self.representation**2

    @property
    def rows(self) -> float:
        """Examples per rank."""
        return self.batch / self.ranks

    @property
    def embedded(self) -> float:
        """Bytes that the tables give this rank, and get back as gradients."""
        return FLOAT * self.rows * self.features * self.width


@dataclass(frozen=True)
class Cost:
    """The cost of one step per rank, averaged over PUB's K steps.

    Attributes:
        forward, backward: dense products of the passes that the plain sum makes too.
        again: dense products beyond those.
        memory: bytes read and written by the optimizer, the tables, at the fork and for updates.
        hidden: bytes to all-reduce while the backward pass goes on.
        exposed: bytes to all-reduce while nothing else goes on.
        exchanged: bytes to send through the tables' all-to-all.
        waits: small or large all-reduces that nothing hides.
        held: bytes held at the worst moment, beyond the plain sum's.
        state: bytes kept between steps, beyond the plain sum's.
    """

    forward: float
    backward: float
    again: float = 0.0
    memory: float = 0.0
    hidden: float = 0.0
    exposed: float = 0.0
    exchanged: float = 0.0
    waits: int = 0
    held: float = 0.0
    state: float = 0.0

    def plus(self, **changes: float) -> Cost:
        """Return this cost with the given amounts added."""
        own = asdict(self)
        return Cost(**{name: value + changes.get(name, 0) for name, value in own.items()})

    def times(self, factor: float) -> Cost:
        """Return the cost of so many repetitions, one after the other."""
        return Cost(**{name: factor * value for name, value in asdict(self).items()})


def plain_sum(w: Workload) -> Cost:
    """Return the plain sum's cost: 2 operations per parameter and example forward, 4 backward, Adam, rows updated."""
    products = (w.shared + w.tasks * w.head) * w.rows
    dense = FLOAT * (w.shared + w.replicated + w.tasks * w.head)
    adam = 7 * dense  # parameter, gradient and two moments read, all but the gradient written
    tables = 4 * w.embedded  # read; gradient, row and its one state number read, row written
    return Cost(
        2 * products, 4 * products,
        memory=adam + tables, hidden=dense, exchanged=0 if w.replicated else 2 * w.embedded,
    )  # fmt: skip


def costs(w: Workload) -> dict[str, Cost]:
    """Return the cost of each method, with tables sharded by TorchRec except where a method refuses them."""
    m, k = w.tasks, 1 / w.every
    plain = plain_sum(w)
    shared, heads = FLOAT * (w.shared + w.replicated), FLOAT * m * w.head
    z = FLOAT * w.rows * w.representation
    one_pass = 4 * w.shared * w.rows  # backward through the shared layers once more
    towers = 4 * m * w.head * w.rows
    # Into the workspace, out of it, and once more for the weighted sum; the plain sum's own additions not deducted.
    fork = plain.plus(memory=3 * m * z, again=2 * m**2 * w.rows * w.representation, held=(m - 1) * z)
    # Every task's gradient apart, and one pass more for sharded tables; averaged in one piece after the passes.
    passes = (m - 1 if w.replicated else m) * one_pass
    each = plain.plus(again=passes, exposed=m * shared + heads, waits=2, hidden=-plain.hidden, held=2 * m * shared)
    mixed = {"again": m**2 * shared / 2, "memory": 6 * m * shared}  # gathered, their updates, inner products, mixed
    # PUB's step between two solves: the towers once more, and gradients averaged after the passes.
    pub = plain.plus(again=towers, exposed=plain.hidden, hidden=-plain.hidden, waits=2)
    last = FLOAT * w.last
    return {
        "plain sum": plain,
        "single task": plain_sum(Workload(1, w.ranks)).times(m).plus(
            state=(m - 1) * (shared * 3 + FLOAT * w.table_rows * (w.width + 1) / w.ranks)
        ),
        "MultiBalance": fork.plus(exposed=FLOAT * m**2, waits=1),
        "MultiBalance, overlap": fork.plus(hidden=FLOAT * m**2),
        "PUB": pub.plus(
            again=k * (towers + 2 * m * w.last * w.rows + m**2 * last / 2), memory=k * 6 * m * last,
            exposed=k * m * last, held=2 * m * last,
        ),
        "PUB (exact)": pub.plus(
            again=k * (passes + mixed["again"]), memory=k * mixed["memory"], exposed=k * (m - 1) * shared,
            held=2 * m * shared,
        ),
        "PUB, authors' form": each.plus(**mixed),
        "AdaTask": each.plus(memory=8 * m * shared, state=2 * (m - 1) * shared),
        "PUB + AdaTask": each.plus(
            memory=(8 + 6 * k) * m * shared, again=k * mixed["again"], state=2 * (m - 1) * shared
        ),
        "Clippy (no sharded tables)": plain.plus(memory=5 * (shared + heads), held=shared + heads),
        "MGDA, UPGrad on parameters": each.plus(**mixed),
    }  # fmt: skip


def seconds(cost: Cost, w: Workload, hardware: Hardware) -> float:
    """Return a step's time; hidden traffic is hidden behind the backward pass alone, as far as that is long enough."""
    ring = 2 * (w.ranks - 1) / w.ranks / hardware.network
    return (
        (cost.forward + cost.again) / hardware.flops
        + max(cost.backward / hardware.flops, cost.hidden * ring)
        + cost.memory / hardware.memory
        + cost.exposed * ring
        + cost.exchanged * (w.ranks - 1) / w.ranks / hardware.network
        + cost.waits * 2 * log2(w.ranks) * hardware.latency
    )


def giga(number: float) -> str:
    """Return bytes in GB, with enough digits for a Gram matrix."""
    return (
        f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number:.0f} B"
    )


def time_table(ranks: int, hardware: Hardware) -> list[str]:
    names = list(costs(Workload(2, ranks)))
    lines = [
        "| method | " + " | ".join(f"M = {tasks}" for tasks in TASKS) + " |",
        "|---|" + "---:|" * len(TASKS),
    ]
    for name in names:
        cells = []
        for tasks in TASKS:
            w = Workload(tasks, ranks)
            found = costs(w)
            own, plain = (seconds(found[of], w, hardware) for of in (name, "plain sum"))
            cells.append(f"{1e3 * own:.1f} ms" if name == "plain sum" else f"×{own / plain:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def bytes_table(w: Workload) -> list[str]:
    lines = [
        "| method | all-reduced, hidden | and waited for | all-to-all | memory traffic | held more | state more |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, cost in costs(w).items():
        numbers = (cost.hidden, cost.exposed, cost.exchanged, cost.memory, cost.held, cost.state)
        lines.append(f"| {name} | " + " | ".join(map(giga, numbers)) + " |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    chosen = arguments.parse_args()
    hardware = Hardware()
    lines = [
        "# A step at scale, on paper",
        "",
        f"Written by `python {' '.join(sys.argv)}`: a model, not a measurement; docs/scale.md has the assumptions.",
        "",
        f"- {hardware}",
        f"- {Workload(0, 0)} with tasks and ranks as below",
    ]
    for ranks in RANKS:
        w = Workload(2, ranks)
        table = giga(FLOAT * w.table_rows * (w.width + 1) / ranks)
        lines += [
            "", f"## {ranks} ranks: {w.rows:,.0f} examples and {table} of tables each", "",
            "Time of a step of the plain sum, and of the others over it with as many tasks.", "",
            *time_table(ranks, hardware),
        ]  # fmt: skip
        for tasks in (2, 8, 64):
            lines += ["", f"Bytes per step and rank, M = {tasks}:", "", *bytes_table(Workload(tasks, ranks))]
    chosen.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
