"""The values that labels may have, for losses and metrics alike: 0, 1 or missing, or a number or missing."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["targets_and_present"]


def targets_and_present(labels: Tensor, /, *, binary: bool = True) -> tuple[Tensor, Tensor]:
    """Split labels of any real dtype into targets and a mask of the labels present; no host sync.

    NaN marks a missing label. In binary labels −1 does too, because integers have no NaN; it is never a negative. Any
    other value than 0, 1 or missing becomes NaN, so that losses and metrics of it are NaN too. Of a regression,
    infinite labels become NaN, and −1 is a number as any other.

    Args:
        labels: floating point, whole numbers or booleans, any shape.
        binary: the labels are 0 and 1; else they are numbers.

    Returns:
        The targets in float32 (float64 for float64), 0 where a label is missing; and the mask of labels present, bool.

    Raises:
        ValueError: the labels are complex.

    Example:
        >>> targets, present = targets_and_present(torch.tensor([1, 0, -1, 2]))
        >>> targets.tolist(), present.tolist()
        ([1.0, 0.0, 0.0, nan], [True, True, False, True])
        >>> targets, present = targets_and_present(torch.tensor([-1.0, torch.nan]), binary=False)
        >>> targets.tolist(), present.tolist()
        ([-1.0, 0.0], [True, False])
    """
    if labels.is_complex():
        raise ValueError(f"Labels must be real numbers or booleans, found {labels.dtype}: pass their real part.")
    # Half precision is widened: sums of 0 and 1 above 2,048 (bfloat16: 256) would be rounded, above 65,504 infinite.
    wide = labels if labels.dtype in {torch.float32, torch.float64} else labels.to(torch.float32)
    missing = wide.isnan()
    if binary:
        missing |= wide == -1
    targets = wide.masked_fill(missing, 0.0)
    wrong = targets * targets - targets if binary else targets - targets
    return targets.masked_fill(wrong != 0, torch.nan), missing.logical_not_()
