"""Trains PUB with α from all that is shared and from the last shared layer alone: does the cheaper solve lose anything?

    python benchmarks/questions/pub_last_layer.py --out benchmarks/results/questions-pub-last-layer.jsonl

On each data set all variants are trained at the same rate and decay. A line of the file holds one training; trainings
that the file holds are not made again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from statistics import fmean

from records import Record, Records, Setting, Tables, arguments, gain, gain_in_words, markdown, show, tested

SEEDS = 10
VARIANTS = {
    "equal": "equal weights",
    "pub": "PUB, all that is shared, every 10",
    "pub:update_every=50": "PUB, all that is shared, every 50",
    "pub:solve_on=last": "PUB, last shared layer, every 10",
}

SETTINGS = {
    "complete-journey": Setting(
        "Complete Journey", "complete-journey", {"rows": 300_000}, {"lr": 0.0178, "table_decay": 2.33}
    ),
    "opposed": Setting(
        "Funnel with opposed tasks",
        "funnel",
        {"rows": 200_000, "conflict": 1.0},
        {"lr": 0.0316, "table_decay": 0.333, "batch_size": 512},
    ),
    "census-income": Setting("Census-Income", "census-income", {}, {"lr": 0.0316, "table_decay": 1.67}),
}


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
                gains = [
                    "" if variant in {"equal", reference} else gain_in_words(gain(found, of[reference]))
                    for reference in ("equal", "pub")
                ]
                lines.append([setting.title, VARIANTS[variant], f"{mean:.4f}", *gains])
    heads = ["setting", "method", "NE", "gain over equal weights", f"gain over {VARIANTS['pub']}"]
    return {"last shared layer": markdown(heads, lines)}


def main() -> None:
    chosen = arguments(__doc__, rows=None, seeds=SEEDS)
    records = Records(chosen.out)
    for name, setting in SETTINGS.items():
        dataset = setting.load(chosen.rows)
        for seed, variant in itertools.product(range(chosen.seeds), VARIANTS):
            key = {"setting": name, "variant": variant, "seed": seed}
            records.get(key, partial(tested, dataset, variant, seed, epochs=1, **setting.training))
    show(tables(records.rows))


if __name__ == "__main__":
    main()
