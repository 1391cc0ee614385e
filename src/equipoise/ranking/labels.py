"""The values that labels may have, for losses and metrics alike: 0, 1, or missing, which is NaN or −1."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["targets_and_present"]


def targets_and_present(labels: Tensor, /) -> tuple[Tensor, Tensor]:
    """Split labels of any real dtype into targets and a mask of the labels present; no host sync.

    −1 marks a missing label, because integers have no NaN; it is never a negative. Any other value than 0, 1 or
    missing becomes NaN, so that losses and metrics of it are NaN too.

    Args:
        labels: floating point, whole numbers or booleans, any shape.

    Returns:
        The targets in float32 (float64 for float64), 0 where a label is missing; and the mask of labels present, bool.

    Raises:
        ValueError: the labels are complex.

    Example:
        >>> targets, present = targets_and_present(torch.tensor([1, 0, -1, 2]))
        >>> targets.tolist(), present.tolist()
        ([1.0, 0.0, 0.0, nan], [True, True, False, True])
    """
    if labels.is_complex():
        raise ValueError(f"Labels must be real numbers or booleans, found {labels.dtype}: pass their real part.")
    # Half precision is widened: sums of 0 and 1 above 2,048 (bfloat16: 256) would be rounded, above 65,504 infinite.
    wide = labels if labels.dtype in {torch.float32, torch.float64} else labels.to(torch.float32)
    present = ((wide == -1) | wide.isnan()).logical_not_()
    targets = wide.where(present, 0.0)
    return targets.masked_fill(targets * targets - targets != 0, torch.nan), present
