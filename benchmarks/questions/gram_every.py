"""Asks how often MultiBalance must measure the gradients' inner products: in every step, or in one out of several.

    python benchmarks/questions/gram_every.py --out benchmarks/results/questions-gram-every.jsonl

Rate and decay are those that `equipoise evidence` chose for MultiBalance on each data set. A line of the file holds one
training; trainings that the file holds are not made again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from statistics import fmean

from records import Record, Records, Setting, Tables, arguments, gain, gain_in_words, markdown, show, tested

OURS = "multibalance"
VARIANTS = {
    OURS: "every step",
    "multibalance:gram_every=4": "one step in 4",
    "multibalance:gram_every=10": "one step in 10",
}
SEEDS = 10
SETTINGS = {
    "complete-journey": Setting(
        "Complete Journey", "complete-journey", {"rows": 600_000}, {"epochs": 2, "lr": 0.0178, "table_decay": 2.33}
    ),
    "kuairand-slice": Setting("KuaiRand slice", "kuairand-slice", {}, {"epochs": 1, "lr": 0.0786, "table_decay": 2.82}),
    "opposed": Setting(
        "Funnel, opposed tasks", "funnel", {"rows": 200_000, "conflict": 1.0},
        {"epochs": 1, "batch_size": 512, "lr": 0.0316, "table_decay": 0.333},
    ),
    "scaled": Setting(
        "Funnel, one loss × 23", "funnel", {"rows": 200_000},
        {"epochs": 1, "batch_size": 512, "lr": 0.0316, "table_decay": 0.333, "loss_scale": {"like": 23.0}},
    ),
    "rare": Setting(
        "Funnel, a rare task", "funnel", {"rows": 300_000, "conversion_rate": 0.001},
        {"epochs": 1, "batch_size": 512, "lr": 0.03, "table_decay": 0.3},
    ),
}  # fmt: skip


def tables(rows: Sequence[Record]) -> Tables:
    """Return the table of the result."""
    lines = []
    for name, setting in SETTINGS.items():
        of = {
            variant: [row for row in rows if (row["setting"], row["variant"]) == (name, variant)]
            for variant in VARIANTS
        }
        for variant, found in of.items():
            if found:
                mean = fmean(fmean(row["test_ne"].values()) for row in found if row["test_ne"])
                lines.append([
                    setting.title,
                    VARIANTS[variant],
                    f"{mean:.4f}",
                    "" if variant == OURS else gain_in_words(gain(found, of[OURS])),
                ])  # fmt: skip
    return {"gram_every": markdown(["setting", "measured", "NE", "gain over every step"], lines)}


def main() -> None:
    chosen = arguments(__doc__, rows=None, seeds=SEEDS)
    records = Records(chosen.out)
    for name, setting in SETTINGS.items():
        dataset = setting.load(chosen.rows)
        for seed, variant in itertools.product(range(chosen.seeds), VARIANTS):
            key = {"setting": name, "variant": variant, "seed": seed}
            records.get(key, partial(tested, dataset, variant, seed, **setting.training))
    show(tables(records.rows))


if __name__ == "__main__":
    main()
