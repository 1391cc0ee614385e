"""Factories of methods that torchjd implements; torchjd is imported when a factory is first called."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from torch import nn

from equipoise.errors import how_to_install
from equipoise.loss_weighting import LossWeighting
from equipoise.methods.method import MethodError

__all__ = [
    "dwa",
    "famo",
    "famo_next_batch",
    "geometric_mean",
    "imtl_l",
    "smooth_tchebycheff",
    "torchjd_aggregation",
    "torchjd_module",
    "uncertainty_weighting",
]

_SMALLEST_LOSS: Final = 1e-8  # as FAMO's


def uncertainty_weighting(tasks: Sequence[str], *, task_weights: Sequence[float] | None = None) -> LossWeighting:
    """Build uncertainty weighting: ``Σ_m ½ exp(−s_m) L_m + ½ s_m`` with learned ``s``, which starts at 0.

    ``s = log σ²`` as the paper advises; learned at the model's rate.
    """
    return LossWeighting(tasks, torchjd_module("scalarization").UW(len(tasks)), task_weights=task_weights)


def imtl_l(tasks: Sequence[str], *, task_weights: Sequence[float] | None = None) -> LossWeighting:
    """Build IMTL-L: ``Σ_m exp(s_m) L_m − s_m`` with learned ``s``, which starts at 0.

    The paper's loss balance: at rest all ``exp(s_m) L_m`` are 1. Learned at the model's rate.
    """
    return LossWeighting(tasks, torchjd_module("scalarization").IMTLL(len(tasks)), task_weights=task_weights)


def dwa(
    tasks: Sequence[str], *, temperature: float = 2.0, task_weights: Sequence[float] | None = None
) -> LossWeighting:
    """Build dynamic weight average: ``w = M softmax(r / temperature)``, ``r_m = L_m(e−1) / L_m(e−2)`` over epochs e.

    The temperature is the paper's. All weights are 1 in the first two epochs.
    """
    return LossWeighting(tasks, torchjd_module("scalarization").DWA(temperature), task_weights=task_weights)


def geometric_mean(tasks: Sequence[str], *, task_weights: Sequence[float] | None = None) -> LossWeighting:
    """Build the geometric loss strategy: ``(Π_m L_m)^(1/M)``; each loss's weight is the mean over M times that loss.

    A loss of less than 1e-8, as of a batch without a positive label, counts as 1e-8 and gets the weight 0: the mean has
    no gradient at 0. torchjd looks for negative losses in every step, which waits for the device.
    """
    torchjds = torchjd_module("scalarization").GeometricMean()
    floored = nn.Sequential(nn.Threshold(_SMALLEST_LOSS, _SMALLEST_LOSS), torchjds)
    return LossWeighting(tasks, floored, task_weights=task_weights)


def smooth_tchebycheff(
    tasks: Sequence[str], *, mu: float = 0.1, task_weights: Sequence[float] | None = None
) -> LossWeighting:
    """Build smooth Tchebycheff scalarization: ``mu log Σ_m exp(L_m / (M mu))``, which nears the largest loss.

    With equal preferences and the ideal point 0. The paper tries ``mu`` of 0.01, 0.1, 0.5 and 1 and names none as the
    best; 0.1 is our choice among them.
    """
    return LossWeighting(tasks, torchjd_module("scalarization").STCH(mu), task_weights=task_weights)


def famo(
    tasks: Sequence[str],
    *,
    weights_lr: float = 0.025,
    weights_decay: float = 1e-3,
    task_weights: Sequence[float] | None = None,
) -> LossWeighting:
    """Build fast adaptive multitask optimization, with its own Adam for the weights' logits.

    The paper's Algorithm 2, with its rate and decay: a second forward pass shows how the step changed the losses of
    the same batch.
    """
    scalarizer = torchjd_module("scalarization").FAMO(len(tasks), lr=weights_lr, weight_decay=weights_decay)
    return LossWeighting(tasks, scalarizer, task_weights=task_weights)


def famo_next_batch(
    tasks: Sequence[str],
    *,
    weights_lr: float = 0.025,
    weights_decay: float = 1e-3,
    task_weights: Sequence[float] | None = None,
) -> LossWeighting:
    """Build FAMO without its second forward pass: the next batch's losses stand for those after the step.

    The difference between two batches comes on top of what the step changed. It does not add up: over many steps all
    but the first and the last batch cancel. Apart from that as :func:`famo`.
    """
    scalarizer = torchjd_module("scalarization").FAMO(len(tasks), lr=weights_lr, weight_decay=weights_decay)
    return LossWeighting(tasks, scalarizer, update_on="next batch", task_weights=task_weights)


def torchjd_aggregation(name: str, **options: Any) -> Any:
    """Build an aggregator or a weighting of ``torchjd.aggregation``.

    Raises:
        MethodError: torchjd, or a solver that it needs, is not installed.
    """
    found = getattr(torchjd_module("aggregation"), name)
    try:
        return found(**options)
    except ImportError as error:  # of a solver
        raise MethodError(f"{error} Or choose another method.") from error


def torchjd_module(module: str) -> Any:
    """Import a module of torchjd.

    Raises:
        MethodError: torchjd is not installed.
    """
    try:
        return import_module(f"torchjd.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torchjd":
            raise
        raise MethodError(
            f"The method is built on torchjd, which is not installed: {how_to_install('torchjd')}, "
            "or choose another method."
        ) from error
