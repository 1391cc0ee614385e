"""Euclidean projection onto the probability simplex, in few tensor operations because it runs in every
step.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["project_simplex"]


def project_simplex(v: Tensor, /, present: Tensor | None = None, *, total: Tensor | float = 1.0) -> Tensor:
    """The point of ``{w ≥ 0, Σ w = total}`` nearest to ``v``.

    The projection is ``max(v − τ, 0)`` with ``τ = max_k (Σ_{i≤k} v_(i) − total) / k`` over the sorted values
    ``v_(1) ≥ v_(2) ≥ …`` (Held, Wolfe and Crowder 1974; the maximum saves the search for the support).

    Args:
        v: finite values, shape [M].
        present: bool, shape [M]; entries that are not present come out as 0 and share nothing of ``total``.
            If none is present, all come out as 0.
        total: the sum of the result, at least 0; a float, or a tensor with no dimensions.

    Returns:
        The projection, shape [M], in the dtype and on the device of ``v``, found without a host sync.

    Example:
        >>> project_simplex(torch.tensor([0.75, 0.75, -1.0]))
        tensor([0.5000, 0.5000, 0.0000])
        >>> project_simplex(torch.tensor([3.0, 0.5, 0.5]), torch.tensor([False, True, True]), total=0.5)
        tensor([0.0000, 0.2500, 0.2500])
    """
    if present is not None:
        v = torch.where(present, v, -torch.inf)
    counts = torch.arange(1, v.shape[0] + 1, dtype=v.dtype, device=v.device)
    thresholds = (v.sort(descending=True).values.cumsum(0) - total) / counts
    threshold = thresholds.amax()
    if present is not None:
        threshold = threshold.clamp(min=torch.finfo(v.dtype).min)  # −∞ where no task is present
    return (v - threshold).clamp(min=0)
