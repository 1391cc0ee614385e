"""Metrics of binary tasks from logits and labels: AUC, normalized entropy, log loss, calibration."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from equipoise.ranking.metrics.rows import checked_columns

__all__ = [
    "area_under_curve",
    "auc",
    "calibration",
    "calibration_of_sums",
    "class_sums",
    "columns_of",
    "entropy_of_sums",
    "log_loss",
    "log_loss_of_sums",
    "normalized_entropy",
]

_ROWS = 1 << 18  # rows whose sums are computed at a time


def log_loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the weighted mean binary cross entropy Σ w ℓ / Σ w, in nats, in [0, ∞]; NaN where no row has weight.

    Args:
        logits: floating point, shape [B].
        labels: 0, 1, or NaN or −1 where missing, shape [B].
        weight: non-negative and finite, shape [B]; None: 1 for every row.

    Raises:
        ValueError: shapes differ, a label is something else, or a weight is negative or not finite.

    Example:
        >>> log_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor(0.6931, dtype=torch.float64)
    """
    return log_loss_of_sums(class_sums(*columns_of(logits, labels, weight)))[0]


def normalized_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the log loss over the entropy of the base rate: 1 is predicting the base rate, lower is better.

    With p = Σ w y / Σ w, NE = log loss / −(p log p + (1 − p) log(1 − p)): He et al., "Practical Lessons from
    Predicting Clicks on Ads at Facebook", ADKDD 2014, equation 1. In [0, ∞]; NaN where the rows with weight
    do not hold both classes.

    Args and errors as for :func:`log_loss`.

    Example:
        >>> normalized_entropy(torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1.0]))
        tensor(1.2326, dtype=torch.float64)
    """
    return entropy_of_sums(class_sums(*columns_of(logits, labels, weight)))[0]


def calibration(logits: Tensor, labels: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the mean prediction over the mean label: 1 is calibrated, above over-predicts; NaN without a positive.

    Args and errors as for :func:`log_loss`.

    Example:
        >>> calibration(torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1.0]))
        tensor(2., dtype=torch.float64)
    """
    return calibration_of_sums(class_sums(*columns_of(logits, labels, weight)))[0]


def auc(logits: Tensor, labels: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the exact area under the ROC curve, in [0, 1]: the chance that a positive ranks above a negative.

    A tie counts one half, and a pair of rows counts with the product of their weights, as in scikit-learn's
    ``roc_auc_score``. NaN where the rows with weight do not hold both classes. Takes O(B log B) time.

    Args and errors as for :func:`log_loss`.

    Example:
        >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        tensor(0.8750, dtype=torch.float64)
    """
    return area_under_curve(*(column.squeeze(1) for column in columns_of(logits, labels, weight)))


def columns_of(logits: Tensor, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check three columns [B]; return them in float64, shape [B, 1], see :func:`checked_columns`."""
    return checked_columns([logits], [labels], weight, binary=[True])


def class_sums(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Sum w y, w (1 − y), w ℓ and w p over the rows, from logits and labels [B, M], weight [B, 1]; shape [4, M].

    The two classes are summed apart because "one class only" is then an exact zero. Computes in float64, some rows at a
    time to take little memory.
    """
    parts = zip(*(torch.split(column, _ROWS) for column in (logits, labels, weight)), strict=True)
    return torch.stack([_class_sums(*(column.double() for column in part)) for part in parts]).sum(0)


def _class_sums(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    counts = ~labels.isnan() & (weight > 0)
    weight = weight.where(counts, 0.0)
    logits = logits.where(counts, 0.0)
    positive = labels.where(counts, 0.0)
    # −log p for a positive, −log(1 − p) for a negative; the usual formula makes ∞ − ∞ of an infinite logit.
    loss = -functional.logsigmoid((2 * positive - 1) * logits)
    terms = (weight * positive, weight * (1 - positive), weight * loss, weight * logits.sigmoid())
    return torch.stack([term.sum(0) for term in terms])


def log_loss_of_sums(sums: Tensor) -> Tensor:
    """Return the log loss of each task, shape [M], from :func:`class_sums`."""
    positives, negatives, loss, _ = sums.unbind(0)
    return loss / (positives + negatives)


def entropy_of_sums(sums: Tensor) -> Tensor:
    """Return the normalized entropy of each task, shape [M], from :func:`class_sums`."""
    positives, negatives, loss, _ = sums.unbind(0)
    total = positives + negatives
    # Σ w times the entropy of the base rate; zero, or 0/0, where a class is missing.
    entropy = -(torch.xlogy(positives, positives / total) + torch.xlogy(negatives, negatives / total))
    return torch.where((positives > 0) & (negatives > 0), loss / entropy, torch.nan)


def calibration_of_sums(sums: Tensor) -> Tensor:
    """Return the calibration of each task, shape [M], from :func:`class_sums`."""
    positives, _, _, predicted = sums.unbind(0)
    return torch.where(positives > 0, predicted / positives, torch.nan)


def area_under_curve(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return the area, a scalar in float64, from three columns of shape [B]."""
    counts = ~labels.isnan() & (weight > 0)
    if logits.is_cpu and bool((weight[counts] == 1).all()):
        return _area_of_pairs(logits[counts & (labels == 1)], logits[counts & (labels == 0)])
    scores, order = logits[counts].sort()
    truth, weight = labels[counts][order], weight[counts][order]
    # Positives and negatives up to each distinct score, so that tied rows are one step of the curve.
    last = torch.ones_like(scores, dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]
    zero = weight.new_zeros(1)
    positives = torch.cat((zero, (weight * truth).cumsum(0)[last]))
    negatives = torch.cat((zero, (weight * (1 - truth)).cumsum(0)[last]))
    # Without a row of either class this is 0/0. Rounding may pass 1 by a little.
    area = (torch.trapezoid(negatives, positives) / (positives[-1] * negatives[-1])).clamp(0, 1)
    return area.masked_fill(scores.isnan().any(), torch.nan)


def _area_of_pairs(positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the share of the pairs in which the positive ranks higher, ties counted one half; exact, on the CPU."""
    pairs = len(positives) * len(negatives)
    if not pairs or bool(positives.isnan().any() | negatives.isnan().any()):
        return torch.tensor(torch.nan, dtype=torch.float64)
    # NumPy sorts values alone, many times faster than PyTorch sorts values with their places.
    few, many = sorted((np.sort(positives.numpy()), np.sort(negatives.numpy())), key=len)
    below, upto = (int(np.searchsorted(many, few, side).sum()) for side in ("left", "right"))
    # Twice the number of pairs in which the score of the few is the higher one.
    doubled = below + upto if len(few) == len(positives) else 2 * pairs - below - upto
    return torch.tensor(doubled / 2 / pairs, dtype=torch.float64)
