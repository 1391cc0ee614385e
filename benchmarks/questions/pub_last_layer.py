"""Trains PUB with α from all that is shared and from the last shared layer alone: does the cheaper solve lose anything?

    python benchmarks/questions/pub_last_layer.py --out benchmarks/results/questions-pub-last-layer.jsonl

On each data set all variants are trained at the same rate and decay. A line of the file holds one training; trainings
that the file holds are not made again.
"""

from __future__ import annotations

from collections.abc import Sequence

from records import Record, Setting, Tables, by_variant, gain, gain_in_words, markdown, mean_ne, show, train_variants

SEEDS = 10
VARIANTS = {
    "equal": "equal weights",
    "pub-exact": "PUB, all that is shared, every 10",
    "pub-exact:update_every=50": "PUB, all that is shared, every 50",
    "pub:solve_on=last": "PUB, last shared layer, every 10",
    "pub:solve_on=last,update_every=1": "PUB, last shared layer, every step",
}

SETTINGS = {
    "complete-journey": Setting(
        "Complete Journey", "complete-journey", {"rows": 300_000}, {"epochs": 1, "lr": 0.0178, "table_decay": 2.33}
    ),
    "opposed": Setting(
        "Funnel with opposed tasks",
        "funnel",
        {"rows": 200_000, "conflict": 1.0},
        {"epochs": 1, "lr": 0.0316, "table_decay": 0.333, "batch_size": 512},
    ),
    "census-income": Setting("Census-Income", "census-income", {}, {"epochs": 1, "lr": 0.0316, "table_decay": 1.67}),
    "ple": Setting(
        "Complete Journey, PLE",
        "complete-journey",
        {"rows": 300_000},
        {"epochs": 1, "lr": 0.0341, "table_decay": 0.507, "model": "ple"},
    ),
    "mmoe": Setting(
        "Complete Journey, MMoE",
        "complete-journey",
        {"rows": 300_000},
        {"epochs": 1, "lr": 0.0439, "table_decay": 2.86, "model": "mmoe"},
    ),
}


def tables(rows: Sequence[Record]) -> Tables:
    """Return the table of the result."""
    lines = []
    for name, setting in SETTINGS.items():
        of = by_variant(rows, name, VARIANTS)
        for variant, found in of.items():
            gains = [
                "" if variant in {"equal", reference} else gain_in_words(gain(found, of[reference]))
                for reference in ("equal", "pub-exact")
            ]
            lines.append([setting.title, VARIANTS[variant], f"{mean_ne(found):.4f}", *gains])
    heads = ["setting", "method", "NE", "gain over equal weights", f"gain over {VARIANTS['pub-exact']}"]
    return {"last shared layer": markdown(heads, lines)}


def main() -> None:
    show(tables(train_variants(__doc__, SETTINGS, VARIANTS, seeds=SEEDS)))


if __name__ == "__main__":
    main()
