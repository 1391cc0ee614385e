"""Asks whether the suite's gains hold when numbers are added up in another order, as on another machine.

    MKL_CBWR=COMPATIBILITY ATEN_CPU_CAPABILITY=default \\
        python benchmarks/questions/arithmetic.py --out benchmarks/results/questions-arithmetic.jsonl

The suite's trainings took the vector units of the processor at hand, and PyTorch's operations at the forks. Here they
are made again with the code for the oldest processors and the forks' kernels in C, which round otherwise from the first
step on; rate, decay and options, initial weights and batches are the same. A line of the file holds one training;
trainings that the file holds are not made again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from records import Record, Records, Tables, arguments, gain, gain_in_words, markdown, ne_of, run_of, show

from equipoise import data
from equipoise.comparison.jobs import Job, method_at
from equipoise.comparison.result_folder import ResultFolder
from equipoise.comparison.suite import Suite
from equipoise.forks.kernel_choice import LIBRARY
from equipoise.report.analysis import analyse
from equipoise.settings import Settings

BENCHMARKS = Path(__file__).parents[1]
SUITE, RESULTS = BENCHMARKS / "evidence.yaml", BENCHMARKS / "evidence"
SETTINGS = ("complete-journey", "kuairand-slice", "funnel-rare")
METHODS = {
    "equal": "equal weights", "multibalance": "MultiBalance", "multibalance-uw": "MultiBalance, uncertainty weighting",
    "uw": "uncertainty weighting", "pub": "PUB",
}  # fmt: skip
SEEDS = 10


def of_suite(setting: str) -> dict[str, list[Record]]:
    """Return the test NE of the suite's trainings by method and seed."""
    found: dict[str, list[Record]] = {method: [] for method in METHODS}
    for run in ResultFolder(RESULTS / setting).results().runs:
        if run.method in METHODS:
            found[run.method].append({"seed": run.seed, "test_ne": ne_of(run)})
    return found


def with_tasks(rows: Sequence[Record], tasks: Sequence[str]) -> list[Record]:
    """Return the records with the NE of these tasks alone."""
    return [row | {"test_ne": {task: ne for task, ne in row["test_ne"].items() if task in tasks}} for row in rows]


def again(setting: str, settings: Settings, records: Records, seeds: int) -> None:
    """Train the suite's chosen methods of a setting once more."""
    dataset = data.load(settings.data, **settings.data_options)
    for run in ResultFolder(RESULTS / setting).results().runs:
        if run.method not in METHODS or run.seed >= seeds:
            continue
        job = Job.of(run)

        def made(job: Job = job) -> Record:
            training = settings.training(lr=job.lr, table_decay=job.table_decay, seed=job.seed).model_dump()
            found = run_of(dataset, method_at(job.method, job.rate), **training)
            return {"status": found.status, "test_ne": ne_of(found)}

        records.get({"setting": setting, "variant": job.method, "seed": job.seed}, made)


def tables(rows: Sequence[Record]) -> Tables:
    """Return the table of the result."""
    suite, lines = Suite.read(SUITE), []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        tasks = analyse(ResultFolder(RESULTS / setting).results()).means_over  # those with enough positive rows
        before = {method: with_tasks(of, tasks) for method, of in of_suite(setting).items()}
        now = {
            method: with_tasks([row for row in rows if (row["setting"], row["variant"]) == (setting, method)], tasks)
            for method in METHODS
        }
        for method, name in METHODS.items():
            gains = ["", ""] if method == "equal" else [_gained(of, method) for of in (before, now)]
            moved = gain_in_words(gain(now[method], before[method]))
            lines.append([suite.entry(setting).title, name, *gains, moved])
    heads = [
        "setting",
        "method",
        "gain over equal weights in the suite",
        "again",
        "gain over itself in the suite",
    ]
    return {"another arithmetic": markdown(heads, lines)}


def _gained(of: Mapping[str, Sequence[Record]], method: str) -> str:
    return gain_in_words(gain(of[method], of["equal"]))


def main() -> None:
    chosen = arguments(__doc__, rows=None, seeds=SEEDS)
    if not LIBRARY.exists():
        raise SystemExit("equipoise was installed without its kernels in C: install it where there is a C compiler.")
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT" or os.environ.get("MKL_CBWR") != "COMPATIBILITY":
        raise SystemExit("Set MKL_CBWR=COMPATIBILITY and ATEN_CPU_CAPABILITY=default, as in the command above.")
    records = Records(chosen.out)
    for setting in SETTINGS:
        again(setting, Suite.read(SUITE).comparison(setting), records, chosen.seeds)
    show(tables(records.rows))


if __name__ == "__main__":
    main()
