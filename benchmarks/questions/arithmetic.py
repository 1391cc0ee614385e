"""Asks whether the suite's gains hold when numbers are added up in another order, as on another machine.

    MKL_CBWR=COMPATIBILITY ATEN_CPU_CAPABILITY=default \\
        python benchmarks/questions/arithmetic.py --out benchmarks/results/questions-arithmetic.jsonl
    python benchmarks/questions/arithmetic.py --this-machine --out benchmarks/results/questions-arithmetic.jsonl

The suite's trainings took the vector units of the processor at hand, and PyTorch's operations at the forks. Here they
are made again with the forks' kernels in C, and with the code for the oldest processors or, on another machine, with
its own; so they round otherwise from the first step on. Rate, decay and options, initial weights and batches are the
same. A line of the file holds one training; trainings that the file holds are not made again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from records import (
    Record,
    Records,
    Tables,
    arguments_of_all,
    gain,
    gain_in_words,
    markdown,
    ne_of,
    read,
    run_of,
    show,
)

from equipoise import data
from equipoise.comparison.jobs import Job, method_at
from equipoise.comparison.result_folder import ResultFolder
from equipoise.comparison.suite import Suite
from equipoise.forks.kernel_choice import LIBRARY
from equipoise.measuring import cpu_name
from equipoise.report.analysis import analyse
from equipoise.settings import Settings

BENCHMARKS = Path(__file__).parents[1]
SUITE, RESULTS = BENCHMARKS / "evidence.yaml", BENCHMARKS / "evidence"
SETTINGS = ("complete-journey", "kuairand-slice", "funnel-rare")
METHODS = {
    "equal": "equal weights", "multibalance": "MultiBalance", "multibalance-uw": "MultiBalance, uncertainty weighting",
    "uw": "uncertainty weighting", "pub-exact": "PUB (exact)",
}  # fmt: skip
SEEDS = 10
OLDEST = "the oldest processors' code"


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


def again(where: str, settings: Mapping[str, Settings], records: Records, *, seeds: int, part: int, of: int) -> None:
    """Train the suite's chosen methods once more: of all trainings each ``of``-th, beginning with number ``part``."""
    jobs = [
        (setting, Job.of(run))
        for setting in settings
        for run in ResultFolder(RESULTS / setting).results().runs
        if run.method in METHODS and run.seed < seeds
    ]
    load = functools.lru_cache(maxsize=1)(lambda name: data.load(settings[name].data, **settings[name].data_options))
    for setting, job in jobs[part::of]:

        def made(setting: str = setting, job: Job = job) -> Record:
            training = settings[setting].training(lr=job.lr, table_decay=job.table_decay, seed=job.seed).model_dump()
            found = run_of(load(setting), method_at(job.method, job.rate), **training)
            return {"status": found.status, "test_ne": ne_of(found)}

        records.get({"arithmetic": where, "setting": setting, "variant": job.method, "seed": job.seed}, made)


def tables(rows: Sequence[Record]) -> Tables:
    """Return the table of the result."""
    suite, lines = Suite.read(SUITE), []
    places = list(dict.fromkeys(row["arithmetic"] for row in rows))
    for setting in dict.fromkeys(row["setting"] for row in rows):
        tasks = analyse(ResultFolder(RESULTS / setting).results()).means_over  # those with enough positive rows
        found = [{method: with_tasks(of, tasks) for method, of in of_suite(setting).items()}]
        for place in places:
            of_place = [row for row in rows if (row["arithmetic"], row["setting"]) == (place, setting)]
            found.append({
                method: with_tasks([row for row in of_place if row["variant"] == method], tasks) for method in METHODS
            })  # fmt: skip
        for method, name in METHODS.items():
            if method == "equal":  # its own trainings moved by rounding alone
                gains = ["", *[gain_in_words(gain(of[method], found[0][method])) for of in found[1:]]]
                lines.append([suite.entry(setting).title, f"{name}, over themselves in the suite", *gains])
            else:
                gains = [gain_in_words(gain(of[method], of["equal"])) for of in found]
                lines.append([suite.entry(setting).title, name, *gains])
    heads = ["setting", "gain over equal weights", "in the suite", *places]
    return {"another arithmetic": markdown(heads, lines)}


def main() -> None:
    parser = arguments_of_all(__doc__, rows=None, seeds=SEEDS)
    parser.add_argument("--this-machine", action="store_true", help="with this machine's own code")
    parser.add_argument(
        "--part", type=int, nargs=2, metavar=("I", "N"), default=(0, 1),
        help="every N-th training, beginning with number I, so that N processes share the work",
    )  # fmt: skip
    chosen = read(parser)
    if not LIBRARY.exists():
        raise SystemExit("equipoise was installed without its kernels in C: install it where there is a C compiler.")
    emulated = torch.backends.cpu.get_cpu_capability() == "DEFAULT" and os.environ.get("MKL_CBWR") == "COMPATIBILITY"
    if emulated == chosen.this_machine:
        raise SystemExit(
            "Set MKL_CBWR=COMPATIBILITY and ATEN_CPU_CAPABILITY=default as in the first command above, or neither and "
            "pass --this-machine."
        )
    where = f"{cpu_name()}, torch {torch.__version__}" if chosen.this_machine else OLDEST
    settings = {setting: Suite.read(SUITE).comparison(setting) for setting in SETTINGS}
    records = Records(chosen.out)
    again(where, settings, records, seeds=chosen.seeds, part=chosen.part[0], of=chosen.part[1])
    if chosen.part[1] == 1:
        show(tables(records.rows))


if __name__ == "__main__":
    main()
