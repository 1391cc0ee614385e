"""Trains with a rare task at several batch sizes: what a gradient at the fork does in batches without its positives.

    python benchmarks/questions/rare_task.py --out benchmarks/results/questions-rare-task.jsonl

One label of `conversion` in 1,000 is positive, so that a batch of 256 rows has none in three batches out of four. All
methods are trained at the same rate and decay. A line of the file holds one training; trainings that the file holds
are not made again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from statistics import fmean

from records import Record, Records, Tables, arguments, gain, gain_in_words, markdown, mean_in_words, show, tested

from equipoise import data

METHODS = {
    "equal": "equal weights",
    "uw": "uncertainty weighting",
    "multibalance": "MultiBalance",
    "multibalance-each-step": "MultiBalance, equal length in each step",
    "imtl-g": "IMTL-G",
    "nash-mtl": "Nash-MTL",
}
BATCH_SIZES = (256, 512, 1024, 4096)
SETTINGS = {"epochs": 1, "lr": 0.03, "table_decay": 0.3}
RARE, RATE = "conversion", 0.001
ROWS, SEEDS = 300_000, 5


def tables(rows: Sequence[Record]) -> Tables:
    """Return the table of the result."""
    lines = []
    for size in dict.fromkeys(row["batch_size"] for row in rows):
        of = {
            method: [row for row in rows if (row["batch_size"], row["method"]) == (size, method)] for method in METHODS
        }
        for method, found in of.items():
            scored = [row["test_ne"] for row in found if row["test_ne"]]
            lines.append([
                f"{size:,}",
                METHODS[method],
                mean_in_words([fmean(ne.values()) for ne in scored], 4),
                mean_in_words([ne[RARE] for ne in scored], 4),
                "" if method == "equal" else gain_in_words(gain(found, of["equal"])),
            ])  # fmt: skip
    return {
        "rare task": markdown(["rows in a batch", "method", "NE", f"NE of `{RARE}`", "gain over equal weights"], lines)
    }


def main() -> None:
    chosen = arguments(__doc__, rows=ROWS, seeds=SEEDS)
    records = Records(chosen.out)
    dataset = data.load("funnel", rows=chosen.rows, conversion_rate=RATE)
    for size, seed, method in itertools.product(BATCH_SIZES, range(chosen.seeds), METHODS):
        key = {"batch_size": size, "seed": seed, "method": method}
        records.get(key, partial(tested, dataset, method, seed, batch_size=size, **SETTINGS))
    show(tables(records.rows))


if __name__ == "__main__":
    main()
