"""Searches static task weights on Complete Journey, to compare them with one training with MultiBalance.

    python benchmarks/questions/static_weights.py --out benchmarks/results/questions-static-weights.jsonl

optuna's TPE searches the tasks' weights, the learning rate and the decay of the embedding tables together, by mean
validation NE of one training each. Equal weights and MultiBalance get a rate and a decay from the same sampler with
fewer trainings. What each search had found after so many trainings is then trained with seeds that chose nothing,
and tested. Every training is one line of the file; those that are there are not made again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import torch
from optuna.samplers import TPESampler
from records import Record, Records, Tables, gain, gain_in_words, markdown, ne_of, run_of, show

from equipoise import data
from equipoise.data import Dataset
from equipoise.training import Run

SEARCH_SEED = 1000  # the first of those with which `equipoise compare` tunes
SEEDS = 10
POINTS = (48, 96, 200)  # trainings of the search for static weights at which it is asked for the best so far
RATE_TRIALS = 16  # trainings of the search for a rate and a decay alone
LOWEST_WEIGHT, HIGHEST_WEIGHT = 0.1, 10.0  # before they are brought to the mean 1, so one is at most 100 times another
RATES, DECAYS = (3e-3, 0.1), (0.0, 3.0)
WHOLE_ROWS = 600_000


@dataclass(frozen=True)
class Search:
    """A method whose rate, decay and, if ``weighted``, static weights are searched."""

    name: str
    method: str
    trials: int
    points: tuple[int, ...]
    weighted: bool = False


def searches(points: Sequence[int], rate_trials: int) -> tuple[Search, ...]:
    return (
        Search("equal weights", "equal", rate_trials, (rate_trials,)),
        Search("MultiBalance", "multibalance", rate_trials, (rate_trials,)),
        Search("static weights", "equal", max(points), tuple(points), weighted=True),
    )


def search(records: Records, dataset: Dataset, chosen: Search) -> None:
    """Make the trainings of a search, and test with fresh seeds what it had found at each of its points."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=TPESampler(seed=0, n_startup_trials=max(4, chosen.trials // 6)))

    def trained(seed: int, settings: dict[str, Any]) -> Record:
        key = {"search": chosen.name, "seed": seed, "settings": settings}
        return records.get(key, lambda: record(dataset, chosen.method, seed, settings))

    made: list[Record] = []
    for _ in range(chosen.trials):  # from the start each time: the same scores give the same proposals
        trial = study.ask()
        made.append(trained(SEARCH_SEED, proposed(trial, chosen, dataset.schema.task_names)))
        study.tell(trial, mean_ne(made[-1]["validation_ne"]))
    for point in chosen.points:
        for seed in range(SEEDS):
            trained(seed, best(made[:point])["settings"])


def record(dataset: Dataset, method: str, seed: int, settings: Mapping[str, Any]) -> Record:
    run = run_of(dataset, method, seed, **settings)
    return {"status": run.status, "validation_ne": ne_of(run, "validation"), "test_ne": ne_of(run, "test"),
            "weights": mean_weights(run)}  # fmt: skip


def proposed(trial: optuna.Trial, chosen: Search, tasks: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "lr": trial.suggest_float("lr", *RATES, log=True),
        "table_decay": trial.suggest_float("table_decay", *DECAYS),
    }
    if chosen.weighted:
        weights = {task: trial.suggest_float(task, LOWEST_WEIGHT, HIGHEST_WEIGHT, log=True) for task in tasks}
        settings["loss_scale"] = {task: weight / fmean(weights.values()) for task, weight in weights.items()}
    return settings


def best(rows: Sequence[Record]) -> Record:
    return min(rows, key=lambda row: mean_ne(row["validation_ne"]))


def mean_ne(by_task: dict[str, float]) -> float:
    """Return the mean over tasks, infinite for a training that diverged."""
    return fmean(by_task.values()) if by_task else math.inf


def mean_weights(run: Run) -> dict[str, float]:
    """Return the weights of a balancing method, averaged over the training and brought to the mean 1.

    Empty for a training without balancing.
    """
    found: dict[str, list[float]] = {}
    for reading in run.monitor:
        for name, value in reading.items():
            _, is_weight, task = name.partition("/weight/")
            if is_weight:
                found.setdefault(task, []).append(math.log(value))
    means = {task: math.exp(fmean(values)) for task, values in found.items()}
    return {task: value / fmean(means.values()) for task, value in means.items()}


def tables(rows: Sequence[Record], points: Sequence[int] = POINTS, rate_trials: int = RATE_TRIALS) -> Tables:
    """Return the tables of the result: gains, gains by task, and the weights found."""
    found = {(name, point): tested for name, point, tested in tested_rows(rows, points, rate_trials)}
    equal, multibalance = found["equal weights", rate_trials], found["MultiBalance", rate_trials]
    tasks = list(equal[0]["test_ne"])
    return {
        "static weights": markdown(
            ["weights", "trainings of the search", "mean NE", "gain over equal weights", "gain over MultiBalance"],
            [
                [
                    name,
                    str(point),
                    f"{fmean(mean_ne(row['test_ne']) for row in tested):.4f}",
                    "" if name == "equal weights" else gain_in_words(gain(tested, equal)),
                    gain_in_words(gain(tested, multibalance)) if name == "static weights" else "",
                ]
                for (name, point), tested in found.items()
            ],
        ),
        "static weights by task": markdown(
            ["gain over equal weights", *(f"`{task}`" for task in tasks)],
            [
                [f"{name}, {point} trainings", *(gain_in_words(gain(tested, equal, task)) for task in tasks)]
                for (name, point), tested in found.items()
                if name != "equal weights"
            ],
        ),
        "weights found": markdown(
            ["weights, mean 1", *(f"`{task}`" for task in tasks)],
            [[name, *(f"{weights[task]:.2f}" for task in tasks)] for name, weights in weight_rows(rows, found, points)],
        ),
    }


def tested_rows(
    rows: Sequence[Record], points: Sequence[int], rate_trials: int
) -> Iterator[tuple[str, int, list[Record]]]:
    """Yield each search, its point, and the trainings that test what it had found there."""
    for chosen in searches(points, rate_trials):
        made = [row for row in rows if row["search"] == chosen.name and row["seed"] == SEARCH_SEED]
        for point in chosen.points:
            settings = best(made[:point])["settings"]
            of_search = [row for row in rows if row["search"] == chosen.name and row["settings"] == settings]
            yield chosen.name, point, [row for row in of_search if row["seed"] != SEARCH_SEED]


def weight_rows(
    rows: Sequence[Record], found: dict[tuple[str, int], list[Record]], points: Sequence[int]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield weights by task: those of the best static ones, and those that MultiBalance gave."""
    for (name, point), tested in found.items():
        if name == "static weights":
            yield f"best static weights of {point}", tested[0]["settings"]["loss_scale"]
    made = [row for row in rows if row["search"] == "static weights" and row["seed"] == SEARCH_SEED]
    ranked = sorted(made, key=lambda row: mean_ne(row["validation_ne"]))[: max(1, max(points) // 20)]
    yield (
        f"geometric mean of the best {len(ranked)}",
        _geometric_mean([row["settings"]["loss_scale"] for row in ranked]),
    )
    given = [row["weights"] for (name, _), tested in found.items() if name == "MultiBalance" for row in tested]
    yield "MultiBalance, gradients at the fork", _geometric_mean(given)


def _geometric_mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {task: math.exp(fmean(math.log(weights[task]) for weights in found)) for task in found[0]}
    return {task: value / fmean(means.values()) for task, value in means.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--rows", type=int, default=WHOLE_ROWS)
    arguments.add_argument("--points", type=lambda text: [int(word) for word in text.split(",")], default=list(POINTS))
    arguments.add_argument("--rate-trials", type=int, default=RATE_TRIALS)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    records = Records(chosen.out)
    dataset = data.load("complete-journey", rows=chosen.rows)
    for each in searches(chosen.points, chosen.rate_trials):
        search(records, dataset, each)
    show(tables(records.rows, chosen.points, chosen.rate_trials))


if __name__ == "__main__":
    main()
