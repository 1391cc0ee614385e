"""The values among which tuning chooses for a method: rate, table decay, and its main option."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import optuna
from scipy.stats import qmc

from equipoise.comparison.tuned_rates import Rate
from equipoise.methods import Method
from equipoise.methods.method import PER_TASK
from equipoise.scalars import spell_value
from equipoise.settings import Settings

__all__ = ["SearchSpace"]

_LARGEST_WEIGHT: Final = 30.0
_DIGITS: Final = 3  # of the values that are tried: more digits decide nothing


class SearchSpace:
    """The space that an optuna trial draws a rate from.

    Learning rates lie between the ends of ``grid`` on a logarithmic scale, table decays between the ends of
    ``decay_grid``; both are rounded to three digits. The main option of a method is one of its values. Weights per task
    lie between 1/30 and 30 on a logarithmic scale; they are divided by their geometric mean, since Adam ignores the
    length of a gradient.

    Args:
        settings: ``grid`` and ``decay_grid``.
        method: its ``search`` names the main option.
        tasks: the tasks' names.
    """

    def __init__(self, settings: Settings, method: Method, tasks: Sequence[str]) -> None:
        self._rates, self._decays = settings.grid, settings.decay_grid
        self._search, self._tasks = method.search, tuple(tasks)

    def draw(self, trial: optuna.Trial) -> Rate:
        """Return the rate that a trial proposes."""
        lr = trial.suggest_float("lr", min(self._rates), max(self._rates), log=True)
        decay = trial.suggest_float("table_decay", min(self._decays), max(self._decays))
        options = [f"{name}={self._option(trial, name, values)}" for name, values in self._search.items()]
        return Rate(_rounded(lr), _rounded(decay), ",".join(options))

    @property
    def weighs_tasks(self) -> bool:
        """True if a list of weights is searched."""
        return PER_TASK in self._search.values()

    def common_points(self, count: int) -> list[dict[str, Any]]:
        """Return the parameters of the first trials: rates and decays that are the same for every method.

        They are points of a Halton sequence, which covers the range evenly, so that no method owes its rate to the luck
        of a draw. The values of an option take turns. The first trial weighs all tasks equally; the sampler draws the
        weights of the others.
        """
        low, high = math.log(min(self._rates)), math.log(max(self._rates))
        least, most = min(self._decays), max(self._decays)
        points = qmc.Halton(2, scramble=False).random(count + 1)[1:]  # the first point is a corner
        found: list[dict[str, Any]] = [
            {
                # an exponential may round to a number just beyond the range
                "lr": min(max(math.exp(low + float(part) * (high - low)), min(self._rates)), max(self._rates)),
                "table_decay": least + float(share) * (most - least),
            }
            for part, share in points
        ]
        for name, values in self._search.items():
            for place, parameters in enumerate(found):
                if values != PER_TASK:
                    parameters[name] = values[place % len(values)]
        if self.weighs_tasks and found:
            found[0] |= {f"weight of {task}": 1.0 for task in self._tasks}
        return found

    def _option(self, trial: optuna.Trial, name: str, values: object) -> str:
        if values != PER_TASK:
            return spell_value(trial.suggest_categorical(name, list(values)))  # type: ignore[call-overload]
        weights = [
            trial.suggest_float(f"weight of {task}", 1 / _LARGEST_WEIGHT, _LARGEST_WEIGHT, log=True)
            for task in self._tasks
        ]
        mean = math.exp(math.fsum(map(math.log, weights)) / len(weights))
        return spell_value([_rounded(weight / mean) for weight in weights])


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
