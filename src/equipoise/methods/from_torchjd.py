"""Factories of methods that torchjd implements; torchjd is imported when a factory is first called."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from equipoise.errors import how_to_install
from equipoise.forks import Weighted
from equipoise.loss_weighting import LossWeighting
from equipoise.methods.method import MethodError

__all__ = ["dwa", "famo", "mgda_at_fork", "mgda_on_parameters", "uncertainty_weighting"]


def uncertainty_weighting(tasks: Sequence[str], *, task_weights: Sequence[float] | None = None) -> LossWeighting:
    """Build uncertainty weighting: ``Σ_m ½ exp(−s_m) L_m + ½ s_m`` with learned ``s``, which starts at 0."""
    return LossWeighting(tasks, _torchjd("scalarization").UW(len(tasks)), task_weights=task_weights)


def dwa(
    tasks: Sequence[str], *, temperature: float = 2.0, task_weights: Sequence[float] | None = None
) -> LossWeighting:
    """Build dynamic weight average: weights by the ratio of each loss's means over the last two epochs."""
    return LossWeighting(tasks, _torchjd("scalarization").DWA(temperature), task_weights=task_weights)


def famo(
    tasks: Sequence[str],
    *,
    weights_lr: float = 0.025,
    weights_decay: float = 1e-3,
    task_weights: Sequence[float] | None = None,
) -> LossWeighting:
    """Build fast adaptive multitask optimization, with its own Adam for the weights' logits."""
    scalarizer = _torchjd("scalarization").FAMO(len(tasks), lr=weights_lr, weight_decay=weights_decay)
    return LossWeighting(tasks, scalarizer, task_weights=task_weights)


def mgda_at_fork(
    tasks: Sequence[str],
    *,
    epsilon: float = 1e-3,
    max_iters: int = 100,
    task_weights: Sequence[float] | None = None,
) -> Weighted:
    """Build MGDA at the fork: the min-norm point of the gradients there, by Frank-Wolfe steps."""
    weighting = _torchjd("aggregation").MGDAWeighting(epsilon=epsilon, max_iters=max_iters)
    return Weighted(tasks, weighting, task_weights=task_weights)


def mgda_on_parameters(*, epsilon: float = 1e-3, max_iters: int = 100) -> Any:
    """Build MGDA on parameters: the min-norm point of the shared parameters' gradients, by Frank-Wolfe steps."""
    return _torchjd("aggregation").MGDA(epsilon=epsilon, max_iters=max_iters)


def _torchjd(module: str) -> Any:
    try:
        return import_module(f"torchjd.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torchjd":
            raise
        raise MethodError(
            f"The method is built on torchjd, which is not installed: {how_to_install('torchjd')}, "
            "or choose another method."
        ) from error
