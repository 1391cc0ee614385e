"""The search for a method's rate, table decay and main option: an optuna study that proposes, and is told scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final

import optuna
from optuna.samplers import TPESampler

from equipoise.comparison.search_space import SearchSpace
from equipoise.comparison.tuned_rates import Rate
from equipoise.methods import Method
from equipoise.settings import Settings

__all__ = ["RateSearch"]

_PER_ROUND: Final = 4  # rates proposed before any is told: fixed, so that the number of workers changes nothing
_MOST_ROUNDS: Final = 8  # a long search proposes more at once: each round starts worker processes
_SEED: Final = 0


class RateSearch:
    """Proposes rates for one method, round by round; every method gets the same number of them.

    Without ``tune_trials`` all points of the grids are proposed in one round. With it, so many are proposed from the
    method's :class:`SearchSpace`: two thirds of them at rates and decays that are the same for every method (a third of
    them where weights of tasks are searched), the rest by optuna's TPE sampler from what was told before. ``trials``
    states another number for a method. The same scores give the same proposals, so a search that was cut off goes on
    where it was, from the runs on disk.

    Args:
        settings: ``grid``, ``decay_grid``, ``tune_trials`` and ``trials``.
        method: the method that is tuned.
        tasks: the tasks' names.

    Attributes:
        trials: the number of rates in all.

    Example:
        >>> from equipoise.methods import parse_method
        >>> settings = Settings.of(grid=[1e-3, 1e-2], decay_grid=[0.0, 1.0])
        >>> search = RateSearch(settings, parse_method("equal"), ["click", "like"])
        >>> [str(rate) for rate in search.ask()]
        ['0.001', '0.001, decay 1', '0.01', '0.01, decay 1']
        >>> search.tell({})
        >>> search.ask()
        []
    """

    def __init__(self, settings: Settings, method: Method, tasks: Sequence[str]) -> None:
        trials = settings.trials.get(method.name, settings.tune_trials)
        self._space = SearchSpace(settings, method, tasks)
        self._grid: list[Rate] = []
        if trials is None:
            points = product(dict.fromkeys(settings.grid), dict.fromkeys(settings.decay_grid))
            self._grid = [Rate(lr, table_decay) for lr, table_decay in points]
        self.trials = len(self._grid) if trials is None else trials
        self._per_round = len(self._grid) or max(_PER_ROUND, math.ceil(self.trials / _MOST_ROUNDS))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        common = math.ceil(self.trials * (1 if self._space.weighs_tasks else 2) / 3)
        self._study = optuna.create_study(sampler=TPESampler(seed=_SEED, n_startup_trials=common))
        for parameters in self._space.common_points(0 if self._grid else common):
            self._study.enqueue_trial(parameters)
        self._left = self.trials
        self._asked: list[tuple[optuna.Trial, Rate]] = []

    @property
    def rounds(self) -> int:
        """The number of rounds in all."""
        return math.ceil(self.trials / self._per_round)

    def ask(self) -> list[Rate]:
        """Return the rates of the next round; none at the end."""
        count = min(self._left, self._per_round)
        self._left -= count
        if self._grid:
            return self._grid[:count]
        trials = [self._study.ask() for _ in range(count)]
        self._asked = [(trial, self._space.draw(trial)) for trial in trials]
        return [rate for _, rate in self._asked]

    def tell(self, scores: Mapping[Rate, float | None], /) -> None:
        """Take the scores of the rates of the last round; lower is better, None and infinite ones are the worst."""
        for trial, rate in self._asked:
            score = scores.get(rate)
            self._study.tell(trial, math.inf if score is None else score)
        self._asked = []
