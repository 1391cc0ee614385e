"""Calibration curves: mean prediction against mean label, from the rows with the lowest predictions to the highest."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from equipoise.ranking.metrics.rows import checked_columns

__all__ = ["BINS", "calibration_curve"]

BINS: Final = 15


def calibration_curve(
    predictions: Tensor, labels: Tensor, weight: Tensor | None = None, /, *, bins: int = BINS
) -> list[dict[str, float]]:
    """Return the mean prediction and the mean label in bins of about as many rows each, by rising prediction.

    A calibrated model has the same value twice in every bin. Rows of equal prediction share a bin, so that the curve
    does not depend on the order of the rows; a bin may then hold more rows than another, and there may be fewer bins.

    Args:
        predictions: probabilities, or of a regression numbers in the target's unit, shape [B].
        labels: 0, 1, or of a regression numbers; NaN, and only NaN, where missing; shape [B].
        weight: non-negative and finite, shape [B]; None: 1 for every row. Rows of weight 0 do not count.
        bins: at most so many.

    Returns:
        Per bin ``prediction`` and ``rate`` (weighted means), ``error`` (the standard error of the rate, from the spread
        of the labels in the bin), and ``rows``. Empty without a row.

    Raises:
        ValueError: shapes differ, a label is infinite, or a weight is negative or not finite.

    Example:
        >>> found = calibration_curve(torch.tensor([0.1, 0.1, 0.8, 0.9]), torch.tensor([0.0, 1.0, 1.0, 1.0]), bins=2)
        >>> [(round(bin["prediction"], 3), bin["rate"], bin["rows"]) for bin in found]
        [(0.1, 0.5, 2), (0.85, 1.0, 2)]
    """
    columns = checked_columns([predictions], [labels], weight, binary=[False], called="Predictions")
    predictions, labels, weight = (column.squeeze(1) for column in columns)
    counts = ~labels.isnan() & (weight > 0)
    predictions, order = predictions[counts].sort()
    labels, weight = labels[counts][order], weight[counts][order]
    rows = len(predictions)
    if rows == 0:
        return []
    # The first row of a run of equal predictions says in which bin the run is.
    first = torch.searchsorted(predictions, predictions)
    place = first * bins // rows
    total = torch.zeros(bins, dtype=torch.float64, device=labels.device)

    def sums(values: Tensor) -> Tensor:
        return total.index_add(0, place, values)

    weights, number = sums(weight), sums(torch.ones_like(weight))
    rates = sums(weight * labels) / weights
    errors = sums((weight * (labels - rates[place])) ** 2).sqrt() / weights
    means = sums(weight * predictions) / weights
    used = number > 0
    values = {name: column[used].tolist() for name, column in
              {"prediction": means, "rate": rates, "error": errors, "rows": number.long()}.items()}  # fmt: skip
    return [dict(zip(values, entry, strict=True)) for entry in zip(*values.values(), strict=True)]
