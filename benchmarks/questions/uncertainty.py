"""Asks why uncertainty weighting gains: the shares of its weights, or their total, which grows as losses fall.

    python benchmarks/questions/uncertainty.py --out benchmarks/results/questions-uncertainty.jsonl

All variants are trained at the same rates and decays. "Their total alone" multiplies all losses by the mean of the
weights that uncertainty weighting would give: no task is weighed against another. "Their shares alone" divides the
weights by that mean. A line of the file holds one training; trainings that the file holds are not made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

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
from torch import Tensor
from torchjd.scalarization import UW

from equipoise.loss_weighting import LossWeighting
from equipoise.methods import METHODS, Method

SEEDS = 10


SETTINGS = {
    "complete-journey": SettingWithRates(
        "Complete Journey, two epochs",
        "complete-journey",
        {"rows": 600_000},
        {"epochs": 2, "batch_size": 2048},
        ((0.0178, 2.33),),
    ),
    "opposed": SettingWithRates(
        "Funnel with opposed tasks",
        "funnel",
        {"rows": 200_000, "conflict": 1.0},
        {"epochs": 1, "batch_size": 1024},
        ((0.0178, 2.33), (0.0562, 1.67)),
    ),
}


class PartOfUncertaintyWeighting(LossWeighting):
    """Weighs losses by the total or by the shares of the weights that uncertainty weighting learns."""

    def __init__(
        self, tasks: Sequence[str], part: Literal["total", "shares"], task_weights: Sequence[float] | None
    ) -> None:
        super().__init__(tasks, UW(len(tasks)), task_weights=task_weights)
        self.part = part

    def weigh(self, losses: Tensor, present: Tensor, /) -> Tensor:
        weights = super().weigh(losses, present)
        weights = weights.mean().expand_as(weights) if self.part == "total" else weights / weights.mean()
        self.last_weights.copy_(weights)
        return weights


def part_of_uncertainty_weighting(
    tasks: Sequence[str], *, part: Literal["total", "shares"], task_weights: Sequence[float] | None = None
) -> LossWeighting:
    return PartOfUncertaintyWeighting(tasks, part, task_weights)


def variants() -> dict[str, Method]:
    """Return the methods to train, by the words that stand for them in the tables."""
    uncertainty = METHODS["uw"]
    total, shares = (
        replace(uncertainty, name=f"uw-{part}", loss_weighting=partial(part_of_uncertainty_weighting, part=part))
        for part in ("total", "shares")
    )
    return {
        "equal weights": METHODS["equal"],
        "uncertainty weighting": uncertainty,
        "their total alone": total,
        "their shares alone": shares,
        "MultiBalance": METHODS["multibalance"],
        "MultiBalance, equal length in each step": METHODS["multibalance-each-step"],
        "MultiBalance and uncertainty weighting": METHODS["multibalance-uw"],
    }


def tables(rows: Sequence[Record]) -> Tables:
    """Return the table of the result."""
    lines = []
    for name, setting in SETTINGS.items():
        for lr, _ in setting.rates:
            of = by_variant([row for row in rows if row["lr"] == lr], name, variants())
            for variant, found in of.items():
                gains = [
                    "" if variant in {"equal weights", reference} else gain_in_words(gain(found, of[reference]))
                    for reference in ("equal weights", "uncertainty weighting")
                ]
                lines.append([f"{setting.title}, rate {lr:g}", variant, f"{mean_ne(found):.4f}", *gains])
    heads = ["setting", "variant", "NE", "gain over equal weights", "gain over uncertainty weighting"]
    return {"uncertainty weighting": markdown(heads, lines)}


def main() -> None:
    show(tables(train_at_rates(__doc__, SETTINGS, variants(), seeds=SEEDS)))


if __name__ == "__main__":
    main()
