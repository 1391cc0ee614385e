"""Preferences among tasks: checked in one place, and brought to the mean 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["preference_factors"]


def preference_factors(task_weights: Sequence[float] | None, tasks: Sequence[str], /) -> list[float]:
    """Return the preferences of the tasks divided by their mean; 1 for each if ``task_weights`` is None.

    Raises:
        ValueError: there is not one positive finite number per task.

    Example:
        >>> preference_factors([9, 1], ["click", "like"])
        [1.8, 0.2]
    """
    weights = [1.0] * len(tasks) if task_weights is None else task_weights
    usable = isinstance(weights, Sequence) and all(isinstance(weight, int | float) for weight in weights)
    if not usable or len(weights) != len(tasks) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"task_weights must be a list of {len(tasks)} positive finite numbers, one for each of "
            f"{', '.join(tasks)}; found {task_weights!r}."
        )
    mean = math.fsum(weights) / len(weights)
    return [weight / mean for weight in weights]
