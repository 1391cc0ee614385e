"""A search for static loss weights on validation data: the most that weighing the losses could win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import optuna

__all__ = ["search_weights"]

_LARGEST: Final = 30.0  # a loss is multiplied by at most this, or divided by it
_SEED: Final = 0


def search_weights(
    tasks: Sequence[str],
    score: Callable[[Mapping[str, float]], float],
    /,
    *,
    trials: int,
    finished: Sequence[tuple[Mapping[str, float], float]] = (),
    on_trial: Callable[[Mapping[str, float], float], None] = lambda *_: None,
) -> dict[str, float]:
    """Return the static weights of the tasks' losses with the lowest score, out of so many that are tried.

    The first trial is weight 1 for all; then each weight lies between 1/30 and 30, searched on a logarithmic scale by
    optuna's TPE sampler with a fixed seed. The weights' geometric mean is 1: Adam ignores the length of a gradient.

    Args:
        score: trains with these weights, and returns the validation score; lower is better.
        finished: trials made before, in their order.
        on_trial: called after each new trial.

    Example:
        >>> best = search_weights(["click", "like"], lambda weights: abs(weights["click"] - 4), trials=30)
        >>> 2 < best["click"] < 8
        True
    """
    sampler = optuna.samplers.TPESampler(seed=_SEED, n_startup_trials=max(4, trials // 3), multivariate=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(dict.fromkeys(tasks, 1.0))
    known = list(finished)
    best: tuple[float, dict[str, float]] | None = None
    for place in range(trials):
        trial = study.ask()
        drawn = {task: trial.suggest_float(task, 1 / _LARGEST, _LARGEST, log=True) for task in tasks}
        weights = centred(drawn)
        if place < len(known):
            found = known[place][1]
        else:
            found = score(weights)
            on_trial(weights, found)
        study.tell(trial, found)
        if best is None or found < best[0]:
            best = (found, weights)
    assert best is not None
    return best[1]


def centred(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights divided by their geometric mean."""
    mean = 1.0
    for weight in weights.values():
        mean *= weight ** (1 / len(weights))
    return {task: weight / mean for task, weight in weights.items()}
