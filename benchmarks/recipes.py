"""Compare training recipes on validation data: decay of the tables, row-wise Adagrad, warm-up, clipping, averages.

    python benchmarks/recipes.py --out benchmarks/results

First every recipe of a family is trained at each of its rates with two tuning seeds; then the best rates of each family
with five other seeds. The test splits are not looked at. Lines already in the results file are kept, and --table writes
the table of these alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from equipoise import data
from equipoise.training import NonFiniteError, train

SEEDS, FRESH_SEEDS = (1000, 1001), (1002, 1003, 1004, 1005, 1006)
ROW_WISE = {"table_optimizer": "rowwise-adagrad"}
REFERENCE = "Adam, decay of the tables"
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "Adam": [{"lr": lr} for lr in (0.003, 0.01, 0.03)],
    REFERENCE: [{"lr": lr, "table_decay": decay} for lr, decay in product((0.01, 0.03), (0.3, 1.0, 3.0))],
    "row-wise Adagrad": [
        ROW_WISE | {"lr": lr, "table_lr": rate} for lr, rate in ((0.01, 0.1), (0.01, 0.3), (0.03, 0.3), (0.03, 1.0))
    ],
    "row-wise Adagrad, decay of the tables": [
        ROW_WISE | {"lr": 0.03, "table_lr": 0.3, "table_decay": decay} for decay in (0.01, 0.1)
    ],
}
EXTRAS: dict[str, dict[str, Any]] = {
    "warmup 0.1": {"warmup": 0.1},
    "clip_norm 1": {"clip_norm": 1.0},
    "ema 0.99": {"ema": 0.99},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--methods", default="equal")
    arguments.add_argument("--table", action="store_true")
    chosen = arguments.parse_args()
    path = chosen.out / "recipes-complete-journey.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not chosen.table:
        torch.set_num_threads(1)
        compare(chosen.methods.split(","), rows, path)
    text = "\n".join(
        [
            "# complete-journey: training recipes by mean normalized entropy over tasks on validation data",
            "",
            "Lower is better. The difference is a mean over pairs of runs with five seeds that chose no rate, with its",
            "95 % interval (Student's t). Written by `benchmarks/recipes.py`; one epoch, shared bottom.",
            "",
            *table(rows),
            "",
        ]
    )
    path.with_suffix(".md").write_text(text)
    print(text)


def compare(methods: list[str], rows: list[dict[str, Any]], path: Path) -> None:
    """Train what ``rows`` lack, and add it to them and to the file."""
    dataset = data.load("complete-journey")

    def score(method: str, seed: int, family: str, settings: dict[str, Any]) -> float:
        key = {"method": method, "seed": seed, "family": family, "settings": settings}
        known = [row for row in rows if all(row[name] == key[name] for name in key)]
        if not known:
            try:
                run = train(dataset, method, seed=seed, evaluations=1, **settings)
            except NonFiniteError as error:
                run = error.run
            known = [key | {"mean_ne": run.mean_validation_ne if run.status == "ok" else None}]
            rows.append(known[0])
            with path.open("a") as file:
                file.write(json.dumps(known[0]) + "\n")
        return ne_of(known[0])

    for method in methods:
        best: dict[str, dict[str, Any]] = {}
        for family, recipes in FAMILIES.items():
            scores = [fmean(score(method, seed, family, recipe) for seed in SEEDS) for recipe in recipes]
            best[family] = recipes[scores.index(min(scores))]
        best |= {f"{REFERENCE}, {extra}": best[REFERENCE] | changes for extra, changes in EXTRAS.items()}
        for (family, recipe), seed in product(best.items(), FRESH_SEEDS):
            score(method, seed, family, recipe)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: the mean of each recipe, best first."""
    found: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        found[row["method"], row["family"], ", ".join(words(row["settings"]))][row["seed"]] = ne_of(row)
    tuning = {key: [by_seed[seed] for seed in SEEDS if seed in by_seed] for key, by_seed in found.items()}
    fresh = {key: [by_seed[seed] for seed in FRESH_SEEDS if seed in by_seed] for key, by_seed in found.items()}
    complete = {key: values for key, values in fresh.items() if len(values) == len(FRESH_SEEDS)}
    references = {key[0]: values for key, values in complete.items() if key[1] == REFERENCE}
    yield "| method | recipe | rates | two tuning seeds | five other seeds | against Adam with decay |"
    yield "|---|---|---|---:|---:|---:|"
    shown = [key for key in found if key in complete or tuning[key]]
    for key in sorted(shown, key=lambda key: (key[0], fmean(complete.get(key) or tuning[key]))):
        reference = references.get(key[0])
        cells = [f"{fmean(values):.4f}" if values else "" for values in (tuning[key], complete.get(key))]
        compared = key in complete and reference is not None and key[1] != REFERENCE
        yield f"| {' | '.join([*key, *cells])} | {paired(complete[key], reference) if compared and reference else ''} |"


def ne_of(row: dict[str, Any]) -> float:
    """Return the mean NE of a run, infinite if it diverged."""
    return math.inf if row["mean_ne"] is None else float(row["mean_ne"])


def words(settings: dict[str, Any]) -> Iterator[str]:
    """Yield the rates and decays of a recipe."""
    for name in ("lr", "table_lr", "table_decay"):
        if name in settings:
            yield f"{name} {settings[name]:g}"


def paired(found: list[float], reference: list[float]) -> str:
    """Return the mean difference of pairs, and half its 95 % interval."""
    differences = [value - other for value, other in zip(found, reference, strict=True)]
    half = 2.776 * stdev(differences) / math.sqrt(len(differences))  # Student's t with 4 degrees of freedom
    return f"{fmean(differences):+.4f} ± {half:.4f}"


if __name__ == "__main__":
    main()
