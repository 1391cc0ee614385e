"""The search for a method's learning rate and table decay: an optuna study that proposes, and is told the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Final

import optuna
from optuna.samplers import TPESampler

from equipoise.comparison.tuned_rates import Rate
from equipoise.settings import Settings

__all__ = ["RateSearch"]

_PER_ROUND: Final = 4  # rates proposed before any is told: fixed, so that the number of workers changes nothing
_SEED: Final = 0


class RateSearch:
    """Proposes rates for one method, round by round; every method gets the same number of them.

    Without ``tune_trials`` all points of the grids are proposed in one round. With it, optuna's TPE sampler chooses so
    many between the ends of the grids, rates on a logarithmic scale: a third of them at random, then four at a time by
    what was told before. The same scores give the same proposals, so a search that was cut off goes on where it was,
    from the runs on disk.

    Args:
        settings: ``grid``, ``decay_grid`` and ``tune_trials``.

    Attributes:
        trials: the number of rates in all.

    Example:
        >>> search = RateSearch(Settings.of(grid=[1e-3, 1e-2], decay_grid=[0.0, 1.0]))
        >>> [str(rate) for rate in search.ask()]
        ['0.001', '0.001, decay 1', '0.01', '0.01, decay 1']
        >>> search.tell({})
        >>> search.ask()
        []
    """

    def __init__(self, settings: Settings) -> None:
        self._rates, self._decays = settings.grid, settings.decay_grid
        points = list(product(dict.fromkeys(self._rates), dict.fromkeys(self._decays)))
        self.trials = settings.tune_trials or len(points)
        self._per_round = self.trials if settings.tune_trials is None else _PER_ROUND
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = TPESampler(seed=_SEED, n_startup_trials=max(_PER_ROUND, self.trials // 3))
        self._study = optuna.create_study(sampler=sampler)
        if settings.tune_trials is None:
            for lr, table_decay in points:
                self._study.enqueue_trial({"lr": lr, "table_decay": table_decay})
        self._left = self.trials
        self._asked: list[tuple[optuna.Trial, Rate]] = []

    @property
    def rounds(self) -> int:
        """The number of rounds in all."""
        return math.ceil(self.trials / self._per_round)

    def ask(self) -> list[Rate]:
        """Return the rates of the next round; none at the end."""
        trials = [self._study.ask() for _ in range(min(self._left, self._per_round))]
        self._left -= len(trials)
        self._asked = [(trial, self._rate(trial)) for trial in trials]
        return [rate for _, rate in self._asked]

    def tell(self, scores: Mapping[Rate, float | None], /) -> None:
        """Take the scores of the rates of the last round; lower is better, None and infinite ones are the worst."""
        for trial, rate in self._asked:
            score = scores.get(rate)
            self._study.tell(trial, math.inf if score is None else score)
        self._asked = []

    def _rate(self, trial: optuna.Trial) -> Rate:
        lr = trial.suggest_float("lr", min(self._rates), max(self._rates), log=True)
        return Rate(lr, trial.suggest_float("table_decay", min(self._decays), max(self._decays)))
