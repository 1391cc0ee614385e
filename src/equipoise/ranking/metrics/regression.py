"""Metrics of regressions: RMSE, MAE and R², from predictions and targets in the target's unit.

A target is missing where it is NaN; −1 is a number like any other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.ranking.metrics.rows import checked_columns

__all__ = ["columns_of", "mae", "mae_of_moments", "merged", "moments", "r2", "r2_of_moments", "rmse", "rmse_of_moments"]


def rmse(predictions: Tensor, targets: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the root of the weighted mean squared error, in the target's unit, in [0, ∞]; NaN without a row.

    Args:
        predictions: floating point, shape [B].
        targets: finite numbers, or NaN where missing, shape [B].
        weight: non-negative and finite, shape [B]; None: 1 for every row.

    Raises:
        ValueError: shapes differ, a target is infinite, or a weight is negative or not finite.

    Example:
        >>> rmse(torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0]))
        tensor(3.5355, dtype=torch.float64)
    """
    return rmse_of_moments(moments(*columns_of(predictions, targets, weight)))[0]


def mae(predictions: Tensor, targets: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the weighted mean absolute error, in the target's unit, in [0, ∞]; NaN without a row.

    Args and errors as for :func:`rmse`.

    Example:
        >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0]))
        tensor(3.5000, dtype=torch.float64)
    """
    return mae_of_moments(moments(*columns_of(predictions, targets, weight)))[0]


def r2(predictions: Tensor, targets: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return R² = 1 − Σ w (y − p)² / Σ w (y − ȳ)²: 1 is perfect, 0 is predicting the mean, in [−∞, 1].

    NaN where the rows with weight do not hold two different targets.

    Args and errors as for :func:`rmse`.

    Example:
        >>> r2(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0]))
        tensor(0.7857, dtype=torch.float64)
    """
    return r2_of_moments(moments(*columns_of(predictions, targets, weight)))[0]


def columns_of(predictions: Tensor, targets: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check three columns [B]; return them in float64, shape [B, 1], see :func:`checked_columns`."""
    return checked_columns([predictions], [targets], weight, binary=[False], called="Predictions")


def moments(predictions: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Return Σ w, ȳ, Σ w (y − ȳ)², Σ w (y − p)² and Σ w |y − p| from columns [B, M] and a weight [B, 1]; [5, M].

    Centred, because the variance of times of day in seconds since 1970 is lost in sums of their squares.
    """
    counts = ~targets.isnan() & (weight > 0)
    weight = weight.where(counts, 0.0)
    total = weight.sum(0)
    if len(targets) == 0:
        return torch.stack([total] * 5)
    # Shifted by one of the targets: those that are all the same then have a variance of exactly zero.
    targets = targets.where(counts, 0.0)
    shift = targets.gather(0, counts.int().argmax(0, keepdim=True)).squeeze(0)
    shifted = (targets - shift).where(counts, 0.0)
    mean = torch.where(total > 0, (weight * shifted).sum(0) / total, 0.0)
    spread = (weight * (shifted - mean) ** 2).sum(0)
    errors = (targets - predictions.where(counts, 0.0)).where(counts, 0.0)
    squared, absolute = (weight * errors**2).sum(0), (weight * errors.abs()).sum(0)
    return torch.stack([total, torch.where(total > 0, shift + mean, 0.0), spread, squared, absolute])


def merged(parts: Tensor) -> Tensor:
    """Return the moments of all rows from those of parts of them, shape [parts, 5, M] (Chan, Golub and LeVeque)."""
    total, mean, spread, squared, absolute = parts[0].unbind(0)
    for part in parts[1:]:
        both = total + part[0]
        share = torch.where(both > 0, part[0] / both, 0.0)
        shift = part[1] - mean
        spread = spread + part[2] + shift**2 * total * share
        mean = torch.where(share == 1, part[1], mean + shift * share)
        total, squared, absolute = both, squared + part[3], absolute + part[4]
    return torch.stack([total, mean, spread, squared, absolute])


def rmse_of_moments(found: Tensor) -> Tensor:
    """Return the RMSE of each task, shape [M], from :func:`moments`."""
    return (found[3] / found[0]).sqrt()


def mae_of_moments(found: Tensor) -> Tensor:
    """Return the MAE of each task, shape [M], from :func:`moments`."""
    return found[4] / found[0]


def r2_of_moments(found: Tensor) -> Tensor:
    """Return the R² of each task, shape [M], from :func:`moments`."""
    return torch.where(found[2] > 0, 1 - found[3] / found[2], torch.nan)
