"""Measured time over the least possible, for the workloads of speed.py, side_by_side.py and evaluation.py.

    python benchmarks/floors.py --out benchmarks/results/floors-cpu.json

`counting.py` counts the fewest operations and bytes. This script measures the machine's rates, each product at its
shape, and then the workloads themselves, in one process: steps and epochs take turns. The least time of a workload is
that of its counts at these rates, so that it moves with the machine. What changes have saved is set against what the
counts predict. About a minute, on two cores with nothing beside.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

import counting
import evaluation
import floors_page
import speed
from counting import Product, Rates, Shape, Term, seconds
from equipoise.measuring import cpu_name
from neighbours.equipoise_itself import CONTENDERS
from neighbours.workload import Workload
from result_files import write_result

TASKS: Final = (2, 8, 32)
TASKS_OF_PUB: Final = (2, 8)
FEW: Final = "one step in 4"
FORKS: Final = ("MultiBalance", f"MultiBalance, {FEW}")
PUBS: Final = ("PUB (exact)", "PUB")
COUNTED: Final = 8  # tasks of the step whose counts are shown
TRAINED: Final = ("plain sum", "plain sum, Adam not fused", "plain sum, row-wise Adagrad for the table", "MultiBalance")
PREDICTIONS: Final = (10_000_000, 4)
EVALUATION: Final = "metrics of 10,000,000 predictions x 4 tasks"
WORKLOAD: Final = Workload(16 * 2048, 4, 2048, dimension=8, bottom=(128, 64), tower=(16,), rate=1e-3)
"""That of side_by_side.py."""


def fastest(call: Callable[[], object], *, seconds_at_most: float = 0.1) -> float:
    """Return the shortest of 4 to 200 calls, in seconds; of one thread those of the processor."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: list[float] = []
    while len(times) < 4 or (len(times) < 200 and sum(times) < seconds_at_most):
        started = clock()
        call()
        times.append(clock() - started)
    return min(times)


def operands(product: Product, /) -> tuple[Tensor, Tensor]:
    """Return matrices of a product, laid out as a linear layer has them."""
    inputs, gradient = torch.randn(product.rows, product.inputs), torch.randn(product.rows, product.outputs)
    weight = torch.randn(product.outputs, product.inputs)
    return {"forward": (inputs, weight.T), "input": (gradient, weight), "weight": (gradient.T, inputs)}[product.kind]


def flops_per_second(product: Product, /) -> float:
    """Return the rate of a product at its shape."""
    left, right = operands(product)
    into = torch.empty(left.shape[0], right.shape[1])
    return product.flops / fastest(lambda: torch.mm(left, right, out=into))


def bytes_per_second(megabytes: int, /) -> float:
    """Return the rate at which a sum of two tensors moves bytes: two read, one written, all of so many megabytes."""
    one, other, total = (torch.ones((megabytes << 20) // 12) for _ in range(3))
    return 3 * one.nbytes / fastest(lambda: torch.add(one, other, out=total), seconds_at_most=0.3)


def cache_bytes() -> int:
    """Return the size of the last cache that the cores share; 32 MiB where the system does not tell."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return int(path.read_text().strip().removesuffix("K")) << 10 if path.is_file() else 1 << 25


def measured_rates(terms: Iterable[Term], threads: int) -> Rates:
    """Measure this machine with so many threads of PyTorch."""
    torch.set_num_threads(threads)
    products = {product: flops_per_second(product) for product in counting.products_of(terms)}
    # A product of a layer of 1024 is what the machine can do where nothing holds it back.
    best = max([*products.values(), flops_per_second(Product("forward", 4096, 1024, 1024))])
    return Rates(products, best, bytes_per_second(6), bytes_per_second(384), cache_bytes())


def speed_shape(tasks: int) -> Shape:
    """Return the shape of a step of speed.py."""
    size = speed.WORKLOADS["cpu"]
    ids = speed.batches(1, size, "cpu", count=1)[0].categorical
    touched = sum(len(column.unique()) for column in ids.unbind(1))
    return Shape(
        size.batch, speed.FIELDS, size.dimension, speed.NUMERIC, (512, 256, 128), (64,), tasks,
        speed.FIELDS * speed.IDS, touched,
    )  # fmt: skip


def trained_shape(workload: Workload) -> Shape:
    """Return the shape of a step of side_by_side.py."""
    schema, rows = workload.dataset.schema, workload.dataset.train
    ids = rows.categorical[: workload.batch]  # type: ignore[attr-defined]
    return Shape(
        workload.batch, len(schema.categorical), workload.dimension, len(schema.numeric_columns), workload.bottom,
        workload.tower, workload.tasks, sum(workload.cardinalities.values()),
        sum(len(column.unique()) for column in ids.unbind(1)),
    )  # fmt: skip


def trained_terms(shape: Shape, contender: str) -> list[Term]:
    """Count a step of a training of side_by_side.py."""
    terms = [*counting.gathering(shape), *counting.plain_step(shape)]
    terms += counting.fork(shape) if contender == "MultiBalance" else []
    return [*terms, *counting.adam(shape, row_wise_table="row-wise" in contender)]


def speed_terms(shape: Shape, contender: str) -> list[Term]:
    """Count the average step of a contender of speed.py: of PUB one step in ten solves."""
    terms = [*counting.plain_step(shape), *counting.sgd(shape)]
    if contender.startswith("MultiBalance"):
        terms += counting.fork(shape, gram_every=4 if contender.endswith(FEW) else 1)
    if contender.startswith("PUB"):
        terms += counting.pub_solve(shape, on="all" if contender.endswith("(exact)") else "last")
    return terms


def least(terms: Iterable[Term], rates: Rates) -> float:
    """Return the least time of the average step with these terms, in milliseconds."""
    return 1e3 * sum(seconds(term, rates) for term in terms)


def counted(terms: Sequence[Term], rates: Rates) -> list[dict[str, Any]]:
    """Return the terms of a workload with their counts and least times."""
    return [
        {
            "name": term.name, "mflop": term.all_flops / 1e6, "megabytes": term.bytes / 1e6, "every": term.every,
            "floor_ms": least([term], rates),
        }
        for term in terms
    ]  # fmt: skip


def row(workload: str, contender: str, measured_ms: float, terms: Sequence[Term], rates: Rates) -> dict[str, Any]:
    """Return a workload's measured and least time."""
    floor = least(terms, rates)
    return {
        "workload": workload, "contender": contender, "measured_ms": measured_ms, "floor_ms": floor,
        "ratio": measured_ms / floor,
    }  # fmt: skip


def measure_steps(rounds: int, rates: Rates) -> list[dict[str, Any]]:
    """Measure the steps of speed.py in turns; of contenders that do more in some steps the average step."""
    rows = []
    for tasks in TASKS:
        shape = speed_shape(tasks)
        names = [*FORKS, *(PUBS if tasks in TASKS_OF_PUB else ())]
        found: list[dict[str, Any]] = speed.measure(
            "cpu", tasks, "cpu", rounds, names, clock="wall", seconds_at_most=math.inf
        )
        plain = found[0]["median_ms"]
        for each in found:
            terms = speed_terms(shape, each["contender"])
            alike = all(term.every == 1 for term in terms)
            measured = each["median_ms"] if alike else plain * each["mean_ratio"]
            rows.append(row(f"step, {tasks} tasks", each["contender"], measured, terms, rates))
    return rows


def measure_training(workload: Workload, rounds: int, rates: Rates) -> list[dict[str, Any]]:
    """Measure epochs of side_by_side.py in turns, per step."""
    steps, order = workload.rows // workload.batch, random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in TRAINED}
    for turn in range(rounds + 1):
        for name in order.sample(TRAINED, len(TRAINED)):
            epoch = CONTENDERS[name](workload)
            if turn:  # the first one warms up
                times[name].append(1e3 * epoch.seconds / steps)
    shape = trained_shape(workload)
    return [
        row("training, 4 tasks", name, statistics.median(found), trained_terms(shape, name), rates)
        for name, found in times.items()
    ]


def saved(rows: Sequence[dict[str, Any]], shape: Shape, rates: Rates) -> list[dict[str, Any]]:
    """Return what changes have saved, beside what the counts predict."""
    ms = {(row["workload"], row["contender"]): row for row in rows}

    def change(words: str, workload: str, before: str, after: str, predicted: float | None = None) -> dict[str, Any]:
        old, new = ms[workload, before], ms[workload, after]
        expected = old["floor_ms"] - new["floor_ms"] if predicted is None else predicted
        return {
            "change": words, "workload": workload, "before_ms": old["measured_ms"],
            "predicted": expected / old["measured_ms"], "measured": 1 - new["measured_ms"] / old["measured_ms"],
        }  # fmt: skip

    def adam(kind: Literal["foreach", "fused"], *, row_wise: bool = False) -> float:
        return least(counting.torch_adam(shape, kind, row_wise_table=row_wise), rates)

    forks = [change("a fork measures in one step out of 4", f"step, {tasks} tasks", *FORKS) for tasks in TASKS]
    last = [change("PUB solves from the last layer", f"step, {tasks} tasks", *PUBS) for tasks in TASKS_OF_PUB]
    training, (fused, foreach, row_wise, _) = "training, 4 tasks", TRAINED
    passes = adam("foreach") - adam("fused")
    rows_alone = adam("fused") - adam("fused", row_wise=True)
    return [
        *forks,
        *last,
        change("Adam in one pass", training, foreach, fused, passes),
        change("row-wise Adagrad for the table", training, fused, row_wise, rows_alone),
    ]


def measure(rounds: int, repetitions: int) -> dict[str, Any]:
    """Measure rates and workloads: steps and metrics on two threads, trainings on one."""
    trained, shapes = trained_shape(WORKLOAD), {tasks: speed_shape(tasks) for tasks in TASKS}
    one = measured_rates([term for name in TRAINED for term in trained_terms(trained, name)], 1)
    rows = measure_training(WORKLOAD, rounds // 2, one)
    two = measured_rates([term for shape in shapes.values() for term in speed_terms(shape, "PUB (exact)")], 2)
    rows = measure_steps(rounds, two) + rows
    metrics = [evaluation.measure(*PREDICTIONS)["seconds"] for _ in range(repetitions)]
    terms = counting.evaluation(*PREDICTIONS)
    rows.append(row(EVALUATION, "", 1e3 * statistics.median(metrics), terms, two))
    return {
        "rates": [
            {
                "threads": threads, "gflops": rates.flops / 1e9, "cache_gb_per_s": rates.cache / 1e9,
                "memory_gb_per_s": rates.memory / 1e9, "cache_mb": rates.cache_bytes / 1e6,
                "products": [
                    {**product._asdict(), "gflops": rate / 1e9} for product, rate in rates.products.items()
                ],
            }
            for threads, rates in ((2, two), (1, one))
        ],
        "rows": rows,
        "counts": {
            f"step, {COUNTED} tasks: MultiBalance": counted(speed_terms(shapes[COUNTED], "MultiBalance"), two),
            f"step, {COUNTED} tasks: PUB (exact)": counted(counting.pub_solve(shapes[COUNTED], on="all"), two),
            f"step, {COUNTED} tasks: PUB": counted(counting.pub_solve(shapes[COUNTED], on="last"), two),
            "training, 4 tasks: plain sum": counted(trained_terms(trained, "plain sum"), one),
            EVALUATION: counted(terms, two),
        },
        "saved": saved(rows, trained, one),
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=20, help="steps of each contender, and twice its epochs")
    arguments.add_argument("--repetitions", type=int, default=1, help="evaluations")
    arguments.add_argument("--out", type=Path, help="written with the endings .json and .md")
    chosen = arguments.parse_args()
    about = {
        "command": shlex.join(["python", *sys.argv]), "machine": cpu_name(), "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }  # fmt: skip
    result = about | measure(chosen.rounds, chosen.repetitions)
    page = floors_page.markdown(result)
    if chosen.out is not None:
        write_result(chosen.out, result, page)
    print(page)


if __name__ == "__main__":
    main()
