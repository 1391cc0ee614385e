"""Euclidean projection onto the probability simplex, in few tensor operations because it runs in every step."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["project_simplex"]


def project_simplex(v: Tensor, /, present: Tensor | None = None, *, total: Tensor | float = 1.0) -> Tensor:
    """Return the point of ``{w ≥ 0, Σ w = total}`` nearest to ``v``.

    The projection is ``max(v − τ, 0)`` with ``τ = max_i (Σ_{j: v_j ≥ v_i} v_j − total) / #{j: v_j ≥ v_i}`` (Held,
    Wolfe and Crowder 1974; the maximum saves the search for the support). The sums are taken by comparing every pair,
    M² numbers: for few tasks that is quicker than to sort, and no operation of it is non-deterministic on a GPU, as a
    cumulative sum is.

    Args:
        v: finite values, shape [M].
        present: bool, shape [M]; entries that are not present come out as 0 and share nothing of ``total``.
            If none is present, all come out as 0.
        total: the sum of the result, at least 0; a number, or a tensor with no dimensions.

    Returns:
        The projection, shape [M], in the dtype and on the device of ``v``, found without a host sync.

    Example:
        >>> project_simplex(torch.tensor([0.75, 0.75, -1.0]))
        tensor([0.5000, 0.5000, 0.0000])
        >>> project_simplex(torch.tensor([3.0, 0.5, 0.5]), torch.tensor([False, True, True]), total=0.5)
        tensor([0.0000, 0.2500, 0.2500])
    """
    masked = v if present is None else torch.where(present, v, -torch.inf)
    # From the largest value on, so that large values lose no precision. What lies more than the total below it comes
    # out as 0 wherever it is, so it may as well be finite.
    lowest = -1 - total
    values = masked - masked.amax()
    values = values.maximum(lowest) if isinstance(lowest, Tensor) else values.clamp(min=lowest)
    above = (values >= values.unsqueeze(1)).to(v.dtype)
    thresholds = (torch.mv(above, values) - total) / above.sum(1)
    projected = (values - thresholds.amax()).clamp_(min=0)
    return projected if present is None else torch.where(present, projected, 0.0)
