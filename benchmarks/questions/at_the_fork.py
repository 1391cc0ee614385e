"""Measures lengths of the tasks' gradients at the fork, and angles between them, over a training.

    python benchmarks/questions/at_the_fork.py --out benchmarks/results/questions-at-the-fork.jsonl

Every variant of MultiBalance is trained with the same seeds at one rate; the monitor is read in every step. A fork with
neither magnitude nor direction is the plain sum of the gradients, so it shows equal weights. A line of the file holds
one training: its test NE and statistics of the steps in each fifth of it. Trainings that the file holds are not made
again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from records import Record, Records, Tables, arguments, gain, gain_in_words, markdown, mean_in_words, ne_of, show

from equipoise import data
from equipoise.data import Dataset
from equipoise.training import train

PLAIN = "multibalance:magnitude=none,direction=none"
OURS = "multibalance"
NO_DIRECTION = "multibalance:direction=none"
VARIANTS = {
    PLAIN: "equal weights",
    OURS: "MultiBalance, γ = 0.01",
    "multibalance:gamma=1.0": "γ = 1: equal lengths in each step",
    "multibalance:gamma=0.1": "γ = 0.1",
    "multibalance:gamma=0.001": "γ = 0.001",
    NO_DIRECTION: "γ = 0.01, no direction",
    "multibalance:magnitude=own": "own lengths, γ = 0.01",
    "multibalance:magnitude=own,gamma=1.0": "own lengths without the average, γ = 1",
}
SETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "complete-journey": ({"rows": 300_000}, {"lr": 0.03, "table_decay": 1.0}),
    "funnel": ({"rows": 150_000, "conflict": 1.0}, {"lr": 0.03, "table_decay": 3.0, "batch_size": 512}),
}
"""Of each data set: options of its loader, and settings of the trainings; rate and decay suit equal weights."""
SEEDS = 10
PARTS = 5
DIGITS = 4
EVERY_STEP = 10**9  # readings of the monitor: more than there are steps


def record(dataset: Dataset, method: str, seed: int, settings: Mapping[str, Any]) -> Record:
    run = train(dataset, method, seed=seed, evaluations=1, monitor_reads=EVERY_STEP, **settings)
    steps = [step_values(reading, dataset.schema.task_names) for reading in run.monitor]
    size = math.ceil(len(steps) / PARTS)
    return {"test_ne": ne_of(run), "parts": [part_of(steps[at : at + size]) for at in range(0, len(steps), size)]}


def step_values(reading: Mapping[str, float], tasks: Sequence[str]) -> dict[str, Any]:
    """Return lengths and cosines in one step, of the tasks present in it.

    ``after`` holds the cosines of the combined gradient Σ w_m g_m with each task's, ``before`` those of the plain sum:
    both follow from the Gram matrix, which the monitor gives as norms and cosines.
    """
    found: dict[str, dict[str, float]] = {"norm": {}, "weight": {}, "cosine": {}}
    for name, value in reading.items():
        for kind, values in found.items():
            _, is_kind, rest = name.partition(f"/{kind}/")
            if is_kind:
                values[rest] = value
    norm, weight = found["norm"], found["weight"]
    present = [task for task in tasks if task in norm]
    gram = {
        (one, other): norm[one] * norm[other] * _cosine(found["cosine"], one, other)
        for one, other in itertools.product(present, repeat=2)
    }
    return {
        "norm": norm,
        "balanced": {task: norm[task] * weight[task] for task in present},
        "weight": weight,
        "cosine": found["cosine"],
        "before": cosines_with_sum(gram, dict.fromkeys(present, 1.0)),
        "after": cosines_with_sum(gram, weight),
    }


def cosines_with_sum(gram: Mapping[tuple[str, str], float], weight: Mapping[str, float]) -> dict[str, float]:
    """Return each task's cosine with Σ w_m g_m, from the Gram matrix of the g_m."""
    products = {task: math.fsum(weight[other] * gram[task, other] for other in weight) for task in weight}
    length = math.sqrt(max(0.0, math.fsum(weight[task] * products[task] for task in weight)))
    return {task: products[task] / (length * math.sqrt(gram[task, task])) for task in weight if length > 0}


def part_of(steps: Sequence[Mapping[str, Any]]) -> Record:
    """Return the statistics of some steps in turn.

    ``jump`` is the spread of the logarithm of a length from step to step: the root of half its mean squared change,
    which a slow trend does not enter.
    """
    found: dict[str, dict[str, float]] = {}
    for kind in ("norm", "balanced"):
        series = {name: [math.log(value) for value in values] for name, values in series_of(steps, kind).items()}
        found[f"{kind}_jump"] = {name: round(jump(values), DIGITS) for name, values in series.items()}
    found["log_balanced"] = {
        name: round(fmean(map(math.log, values)), DIGITS) for name, values in series_of(steps, "balanced").items()
    }
    for kind in ("cosine", "before", "after"):
        found[kind] = {name: round(fmean(values), DIGITS) for name, values in series_of(steps, kind).items()}
    return found


def series_of(steps: Sequence[Mapping[str, Any]], kind: str) -> dict[str, list[float]]:
    """Return each name's values, in the steps in which its task was present."""
    names = dict.fromkeys(name for step in steps for name in step[kind])
    return {name: [step[kind][name] for step in steps if name in step[kind]] for name in names}


def jump(values: Sequence[float]) -> float:
    changes = [(after - before) ** 2 for before, after in itertools.pairwise(values)]
    return math.sqrt(fmean(changes) / 2) if changes else 0.0


def _cosine(cosines: Mapping[str, float], one: str, other: str) -> float:
    return 1.0 if one == other else cosines.get(f"{one}/{other}", cosines.get(f"{other}/{one}", 0.0))


def tables(rows: Sequence[Record]) -> Tables:
    """Return the tables of the result, three for each data set."""
    found: Tables = {}
    for name in SETS:
        of_set = {variant: rows_of(rows, name, variant) for variant in VARIANTS}
        found[f"lengths, {name}"] = lengths({variant: of for variant, of in of_set.items() if of})
        found[f"angles with the sum, {name}"] = angles_with_sum(of_set)
        found[f"angles between tasks, {name}"] = angles_between(of_set)
    return found


def rows_of(rows: Sequence[Record], name: str, variant: str) -> list[Record]:
    return [row for row in rows if row["data"] == name and row["method"] == variant]


def lengths(of_set: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return a table of the spread of lengths from step to step, and of quality."""
    return markdown(
        [
            "variant",
            "spread of g",
            "of its balanced form",
            "last over first fifth",
            "mean NE",
            "gain over equal weights",
        ],
        [
            [
                VARIANTS[method],
                mean_in_words([100 * mean_of(row, "norm_jump") for row in found], 1),
                mean_in_words([100 * mean_of(row, "balanced_jump") for row in found], 1),
                mean_in_words([growth(row) for row in found]),
                f"{fmean(fmean(row['test_ne'].values()) for row in found if row['test_ne']):.4f}",
                "" if method == PLAIN else gain_in_words(gain(found, of_set[PLAIN])),
            ]
            for method, found in of_set.items()
        ],
    )


def angles_with_sum(of_set: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return a table of the cosine of each task's gradient with the one that goes on."""
    tasks = list(of_set[PLAIN][0]["test_ne"])
    return markdown(
        ["training", *(f"`{task}`" for task in tasks)],
        [
            [
                f"{VARIANTS[method]}, {which} fifth",
                *(mean_in_words([row["parts"][at]["after"][task] for row in of_set[method]]) for task in tasks),
            ]
            for method in (PLAIN, NO_DIRECTION, OURS)
            for at, which in ((0, "first"), (-1, "last"))
        ],
    )


def angles_between(of_set: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return a table of the cosines between two tasks' gradients."""
    return markdown(
        ["pair", "equal weights, first fifth", "last fifth", "MultiBalance, first fifth", "last fifth"],
        [
            [
                " and ".join(f"`{task}`" for task in pair.split("/")),
                *(
                    mean_in_words([row["parts"][at]["cosine"][pair] for row in of_set[method]])
                    for method in (PLAIN, OURS)
                    for at in (0, -1)
                ),
            ]
            for pair in of_set[PLAIN][0]["parts"][0]["cosine"]
        ],
    )


def growth(row: Record) -> float:
    """Return how long the balanced gradients are in the last fifth, over their length in the first: mean over tasks."""
    first, last = (row["parts"][at]["log_balanced"] for at in (0, -1))
    return fmean(math.exp(last[task] - first[task]) for task in first)


def mean_of(row: Record, kind: str) -> float:
    """Return the mean over parts and tasks."""
    return fmean(value for part in row["parts"] for value in part[kind].values())


def main() -> None:
    chosen = arguments(__doc__, rows=None, seeds=SEEDS)
    records = Records(chosen.out)
    for name, (options, settings) in SETS.items():
        dataset = data.load(name, **options | ({"rows": chosen.rows} if chosen.rows else {}))
        for seed, method in itertools.product(range(chosen.seeds), VARIANTS):
            key = {"data": name, "method": method, "seed": seed}
            records.get(key, partial(record, dataset, method, seed, settings))
    show(tables(records.rows))


if __name__ == "__main__":
    main()
