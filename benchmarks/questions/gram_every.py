"""Asks how often MultiBalance must measure the gradients' inner products: in every step, or in one out of several.

    python benchmarks/questions/gram_every.py --out benchmarks/results/questions-gram-every.jsonl

Rate and decay are those that `equipoise evidence` chose for MultiBalance on each data set; with the rare task those of
`rare_task.py`. A line of the file holds one training; trainings that the file holds are not made again.
"""

from __future__ import annotations

from collections.abc import Sequence

from records import Record, Setting, Tables, by_variant, gain, gain_in_words, markdown, mean_ne, show, train_variants

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
        of = by_variant(rows, name, VARIANTS)
        for variant, found in of.items():
            gained = "" if variant == OURS else gain_in_words(gain(found, of[OURS]))
            lines.append([setting.title, VARIANTS[variant], f"{mean_ne(found):.4f}", gained])
    return {"gram_every": markdown(["setting", "measured", "NE", "gain over every step"], lines)}


def main() -> None:
    show(tables(train_variants(__doc__, SETTINGS, VARIANTS, seeds=SEEDS)))


if __name__ == "__main__":
    main()
