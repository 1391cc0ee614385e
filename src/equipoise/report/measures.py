"""The metrics that a comparison shows by task: names, direction, and how a change is counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from equipoise.comparison.results import PlannedRuns, PlannedTask

__all__ = ["MEASURES", "Measure", "error_name", "measures_of"]


@dataclass(frozen=True)
class Measure:
    """A metric of tasks.

    Attributes:
        name: its name in a run's record.
        label: its name for readers.
        title: the heading of its table, with the direction.
        higher_is_better: the direction.
        relative: a change is counted in per cent of the reference; otherwise as a difference.
        digits: decimals of its value; None: four significant digits, for a number in a unit of its own.
        full_colour: a change of this size gets the strongest background.
    """

    name: str
    label: str
    title: str
    higher_is_better: bool
    relative: bool
    digits: int | None
    full_colour: float

    @property
    def digits_of_gain(self) -> int:
        """Decimals of a change."""
        return 1 if self.relative else 4


MEASURES: Final = {
    measure.name: measure
    for measure in (
        Measure("ne", "NE", "Normalized entropy (NE) by task, lower is better", False, True, 4, 10.0),
        Measure("auc", "AUC", "AUC by task, higher is better", True, False, 4, 0.05),
        Measure("gauc", "GAUC", "Grouped AUC (GAUC) by task, higher is better", True, False, 4, 0.05),
        Measure("rmse", "RMSE", "RMSE, lower is better", False, True, None, 10.0),
        Measure("mae", "MAE", "MAE, lower is better", False, True, None, 10.0),
        Measure("r2", "R²", "R², higher is better", True, False, 4, 0.1),
    )
}
"""Every metric with a direction. Of regressions ``ne`` is the normalized squared error (NSE)."""

_OF_KIND: Final = {"binary": ("ne", "auc", "gauc"), "regression": ("rmse", "mae", "r2", "ne")}


def measures_of(task: PlannedTask) -> tuple[Measure, ...]:
    """Return the measures of a task of that kind."""
    return tuple(MEASURES[name] for name in _OF_KIND[task.kind])


def error_name(plan: PlannedRuns, tasks: Iterable[str]) -> str:
    """Return the name of the normalized error of some tasks: NE (entropy), NSE (squared error), or both."""
    kinds = {plan.about(task).kind for task in tasks}
    return {frozenset(("regression",)): "NSE", frozenset(("binary", "regression")): "NE or NSE"}.get(
        frozenset(kinds), "NE"
    )
