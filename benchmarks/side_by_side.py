"""Training speed beside other libraries: the same rows and the same model, each with its own loop and data pipeline.

    python benchmarks/side_by_side.py --out benchmarks/results/side-by-side.json

Measured where they are installed: torchjd, torch-rechub, NextRec and FuxiCTR (``pip install --no-deps torch-rechub
nextrec fuxictr``, and what they import: the page says which versions). A library that is not installed, and one that
fails, is named in the page.

Each library has a process of its own, so that imports do not count and no library changes another. In a round each
contender trains a new model for one epoch, in an order that is drawn anew; a warm-up of a few steps comes before the
first. The time goes from the request for the first batch to the end of the last step (`neighbours/workload.py`):
evaluation, checkpoints, and the preparation of the rows before the epoch are left out. Ratios are taken round by round;
the median is quoted with an interval by order statistics.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import torch

from equipoise.measuring import cpu_name, median_interval
from neighbours.workload import Contender, Workload
from result_files import write_result

PLAIN, BALANCED = "plain sum", "MultiBalance"
NOT_FUSED, ROW_WISE = "plain sum, Adam not fused", "plain sum, row-wise Adagrad for the table"
WARM_UP_STEPS: Final = 4
KINDS: Final = ("seconds", "processor")  # of time that is measured
LEAST_ROUNDS: Final = 6  # the fewest that give a 95 % interval
SECONDS_PER_EPOCH: Final = 600


@dataclass(frozen=True)
class Library:
    """A library and where it is measured.

    Attributes:
        package: its name in Python, by which one finds out whether it is installed.
        distribution: its name in an index of packages.
        module: the module of `neighbours` that trains with it.
        contenders: what it trains by; the first is the plain sum of the losses.
    """

    package: str
    distribution: str
    module: str
    contenders: tuple[str, ...]


LIBRARIES: Final[Mapping[str, Library]] = {
    "equipoise": Library("equipoise", "equipoise", "equipoise_itself", (PLAIN, BALANCED, "PUB", NOT_FUSED, ROW_WISE)),
    "torchjd": Library("torchjd", "torchjd", "torchjd_loop", (PLAIN, "UPGrad", "MGDA")),
    "torch-rechub": Library(
        "torch_rechub", "torch-rechub", "torch_rechub_trainer", (PLAIN, "UWL", "GradNorm", "MetaBalance")
    ),
    "NextRec": Library("nextrec", "nextrec", "nextrec_fit", (PLAIN, "GradNorm")),
    "FuxiCTR": Library("fuxictr", "fuxictr", "fuxictr_fit", (PLAIN,)),
}
OWN: Final = next(iter(LIBRARIES))


class FailedError(RuntimeError):
    """A contender could not be trained; the message says why."""


def serve(library: str, workload: Workload, threads: int, requests: Connection) -> None:
    """Train by what is asked for, in a process of its own, until ``None`` is asked for."""
    torch.set_num_threads(threads)
    set_start_method(None, force=True)  # loading processes start as in a library's own script, not as this one did
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        os.chdir(folder)  # some libraries write logs and checkpoints
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())
        few = replace(workload, rows=WARM_UP_STEPS * workload.batch)
        warm: set[str] = set()
        for name in asked(requests):
            try:
                train: Contender = import_module(f"neighbours.{LIBRARIES[library].module}").CONTENDERS[name]
                if name not in warm:
                    train(few)
                    warm.add(name)
                requests.send(asdict(train(workload)))
            except Exception as error:  # noqa: BLE001 - whatever another library raises is its result
                first = next(iter(f"{error}".splitlines()), "")
                requests.send({"failed": f"{type(error).__name__}: {first}"})


def asked(requests: Connection) -> Iterator[str]:
    """Yield what is asked for, until ``None`` is or the one who asks has ended."""
    with suppress(EOFError, BrokenPipeError):
        while (name := requests.recv()) is not None:
            yield name


class Server:
    """The process of one library."""

    def __init__(self, library: str, workload: Workload, threads: int) -> None:
        context = get_context("spawn")
        self.requests, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(library, workload, threads, theirs))
        self.process.start()
        theirs.close()

    def train(self, name: str) -> dict[str, Any]:
        """Train for one epoch; return its seconds and the number of parameters.

        Raises:
            FailedError: it ended with an exception, or not in time.
        """
        try:
            self.requests.send(name)
            if not self.requests.poll(SECONDS_PER_EPOCH):
                raise FailedError(f"an epoch took more than {SECONDS_PER_EPOCH} s")
            answer: dict[str, Any] = self.requests.recv()
        except (EOFError, BrokenPipeError):
            self.process.join()
            raise FailedError(f"its process ended with code {self.process.exitcode}") from None
        if "failed" in answer:
            raise FailedError(answer["failed"])
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process.is_alive():
            with suppress(BrokenPipeError):
                self.requests.send(None)
            self.process.join(60)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextmanager
def servers(libraries: Sequence[str], workload: Workload, threads: int) -> Iterator[dict[str, Server]]:
    """Start a process for each library, and end them all."""
    started: dict[str, Server] = {}
    try:
        for library in libraries:
            started[library] = Server(library, workload, threads)
        yield started
    finally:
        for server in started.values():
            server.close()


def measure(
    workload: Workload, *, rounds: int, libraries: Sequence[str], threads: int, seconds_at_most: float
) -> Iterator[dict[str, Any]]:
    """Train every contender once per round; yield after each the times so far, and why some could not be trained."""
    end = time.perf_counter() + seconds_at_most
    order = random.Random(0)
    names = [(library, name) for library in libraries for name in LIBRARIES[library].contenders]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {contender: [] for contender in names}
    failed: dict[tuple[str, str], str] = {}
    with servers(libraries, workload, threads) as running:
        for turn in range(rounds):
            if turn >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            for contender in order.sample(names, len(names)):
                if contender in failed:
                    continue
                library, name = contender
                try:
                    found[contender].append(running[library].train(name))
                except FailedError as error:
                    failed[contender] = f"{error}"
                    continue
                rate = workload.rows / found[contender][-1]["seconds"]
                print(f"round {turn + 1}: {library}, {name}: {rate:.0f} examples per second", flush=True)
            yield {
                "rounds": turn + 1,
                "contenders": [
                    {
                        "library": library, "name": name, "parameters": epochs[-1]["parameters"],
                        **{kind: [epoch[kind] for epoch in epochs] for kind in KINDS},
                    }
                    for (library, name), epochs in found.items() if (library, name) not in failed
                ],
                "failed": [
                    {"library": library, "name": name, "reason": reason} for (library, name), reason in failed.items()
                ],
            }  # fmt: skip


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Return the median of the ratios by round, and its interval."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    low, high = median_interval(ratios)
    return {"ratio": statistics.median(ratios), "low": low, "high": high, "pairs": len(ratios)}


def rows_of(measured: Mapping[str, Any], examples: int) -> list[dict[str, Any]]:
    """Return for each contender its speed, equipoise's speed over it, and its time over its library's plain sum.

    Equipoise's plain sum is compared with other plain sums, MultiBalance with the other ways to balance; its further
    optimizers are compared with its own plain sum alone. Both ratios are given by duration and by processor time.
    """
    times = {(found["library"], found["name"]): found for found in measured["contenders"]}
    rows: list[dict[str, Any]] = []
    for (library, name), own in times.items():
        rates = {kind: examples / statistics.median(own[kind]) for kind in KINDS}
        row: dict[str, Any] = {"library": library, "name": name, "examples_per": rates}
        reference = OWN, PLAIN if name == PLAIN else BALANCED
        if library != OWN and reference in times:
            row["speed"] = {kind: ratio(own[kind], times[reference][kind]) for kind in KINDS}
        if name != PLAIN and (library, PLAIN) in times:
            row["over_plain"] = {kind: ratio(own[kind], times[library, PLAIN][kind]) for kind in KINDS}
        rows.append(row)
    return rows


def markdown(result: Mapping[str, Any]) -> str:
    """Return the page of a result."""
    interval = "95 % intervals" if result["rounds"] >= LEAST_ROUNDS else "their range"
    lines = [
        "# Training speed beside other libraries", "",
        f"{result['machine']}, {result['threads']} thread(s) in each process, load {result['load']:.1f} at the start; "
        f"{', '.join(map(' '.join, result['versions'].items()))}.",
        f"{result['workload']}. Medians over {result['rounds']} interleaved rounds with {interval}; written by",
        f"`{result['command']}`.", "",
        f"Speed of {OWN}: that of its plain sum over this plain sum, of its {BALANCED} over this way to balance.",
        "Cost: the time of an epoch over that of the library's own plain sum. Both are given by duration, and by",
        "processor time, which hardly depends on what else the machine does and includes the processes that load rows.",
        "",
        "| library | trained by | examples per s | per s of processor "
        f"| speed of {OWN} | by processor | cost | by processor |",
        "|---|---|---:|---:|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        ratios = [cell(row.get(what, {}).get(kind)) for what in ("speed", "over_plain") for kind in KINDS]
        rates = [f"{row['examples_per'][kind]:,.0f}" for kind in KINDS]
        lines.append(f"| {' | '.join([row['library'], row['name'], *rates, *ratios])} |")
    others = [row for row in result["rows"] if row["name"] == PLAIN and "speed" in row]
    if others:
        lines += ["", "The nearest of the others by the plain sum:"]
    for kind, words in zip(KINDS, ("examples per second", "examples per second of processor time"), strict=True):
        if others:
            nearest = min(others, key=lambda row: row["speed"][kind]["ratio"])
            lines.append(f"- in {words} {nearest['library']}, {cell(nearest['speed'][kind])}")
    if result["failed"]:
        lines += ["", "Could not be trained:", ""]
        lines += [f"- {found['library']}, {found['name']}: {found['reason']}" for found in result["failed"]]
    if result["missing"]:
        lines += ["", f"Not installed: {', '.join(result['missing'])}."]
    return "\n".join([*lines, "", *REMARKS]) + "\n"


REMARKS: Final = (
    "What differs: torchjd brings neither a model nor a data pipeline, so it trains equipoise's model on PyTorch's",
    "`DataLoader`. FuxiCTR loads rows in a second process, its default, and clips gradients, which cannot be turned",
    "off; it has no way to balance tasks, and no shared bottom in its package: this one is built from its layers.",
    "NextRec adds a bias per task. torch-rechub's batch normalisation is taken out.",
)


def cell(found: Mapping[str, Any] | None) -> str:
    """Return a ratio and its interval for a table."""
    return "" if found is None else f"×{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rows", type=int, default=16 * 2048, help="examples of an epoch")
    arguments.add_argument("--batch", type=int, default=2048)
    arguments.add_argument("--tasks", type=int, default=4)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--seconds", type=float, default=math.inf, help="no round begins after that, but six")
    arguments.add_argument("--threads", type=int, default=1, help="threads of PyTorch in each process")
    arguments.add_argument("--only", nargs="*", choices=list(LIBRARIES), default=list(LIBRARIES))
    arguments.add_argument("--out", type=Path, help="written with the endings .json and .md")
    chosen = arguments.parse_args()
    # The default model of equipoise.
    workload = Workload(chosen.rows, chosen.tasks, chosen.batch, dimension=8, bottom=(128, 64), tower=(16,), rate=1e-3)
    installed = [name for name in chosen.only if find_spec(LIBRARIES[name].package)]
    about = {
        "command": " ".join(["python", *sys.argv]),
        "workload": f"{workload.rows:,} rows of the generated funnel, {workload.tasks} tasks; a shared bottom with "
        f"embeddings of {workload.dimension}, bottom {'-'.join(map(str, workload.bottom))}, towers "
        f"{'-'.join(map(str, workload.tower))}-1, Adam, batches of {workload.batch}",
        "machine": cpu_name(),
        "threads": chosen.threads,
        "load": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: version(LIBRARIES[name].distribution) for name in installed if name != OWN},
        "missing": [name for name in chosen.only if name not in installed],
    }
    page = ""
    for measured in measure(
        workload, rounds=chosen.rounds, libraries=installed, threads=chosen.threads, seconds_at_most=chosen.seconds
    ):
        result = about | {"rows": rows_of(measured, workload.rows)} | measured
        page = markdown(result)
        if chosen.out is not None:  # after each round: who ends it early keeps what was measured
            write_result(chosen.out, result, page)
    print(page)


if __name__ == "__main__":
    main()
