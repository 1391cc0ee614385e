"""Asks why MultiBalance gains less with MMoE and PLE than with a shared bottom, all else being equal.

    python benchmarks/questions/backbones.py --out benchmarks/results/questions-backbones.jsonl

Model by model, all methods share a rate and a decay: each pair that `equipoise evidence` chose there for some of them.
A line of the file holds one training; trainings that the file holds are not made again.
"""

from __future__ import annotations

from collections.abc import Sequence

from records import (
    Record,
    SettingWithRates,
    Tables,
    by_variant,
    gain,
    gain_in_words,
    markdown,
    mean_ne,
    show,
    train_at_rates,
)
from uncertainty import variants as parts

from equipoise.methods import METHODS, Method

SEEDS = 10
RATES = ((0.0341, 0.507), (0.0562, 1.67))
TRAINING = {"epochs": 1, "batch_size": 2048}
SETTINGS = {
    model: SettingWithRates(title, "complete-journey", {"rows": 300_000}, TRAINING | {"model": model}, RATES)
    for model, title in {"shared-bottom": "shared bottom", "mmoe": "MMoE", "ple": "PLE"}.items()
}


def variants() -> dict[str, str | Method]:
    """Return the methods to train, by the words that stand for them in the table."""
    of = parts()
    return {
        "equal weights": of["equal weights"],
        "uncertainty weighting": of["uncertainty weighting"],
        "its total alone": of["their total alone"],
        "its shares alone": of["their shares alone"],
        "MultiBalance": of["MultiBalance"],
        "MultiBalance, β 0.3": "multibalance:beta=0.3",
        "MultiBalance and uncertainty weighting": of["MultiBalance and uncertainty weighting"],
        "IMTL-G": METHODS["imtl-g"],
    }


def tables(rows: Sequence[Record]) -> Tables:
    """Return the table of the result."""
    lines = []
    for name, setting in SETTINGS.items():
        for lr, _ in setting.rates:
            of = by_variant([row for row in rows if row["lr"] == lr], name, variants())
            for variant, found in of.items():
                gains = [
                    "" if variant == "equal weights" else gain_in_words(gain(found, of["equal weights"], task))
                    for task in ("", "coupon")
                ]
                lines.append([f"{setting.title}, rate {lr:g}", variant, f"{mean_ne(found):.4f}", *gains])
    return {"models": markdown(["model", "method", "NE", "gain over equal weights", "gain on `coupon`"], lines)}


def main() -> None:
    show(tables(train_at_rates(__doc__, SETTINGS, variants(), seeds=SEEDS)))


if __name__ == "__main__":
    main()
