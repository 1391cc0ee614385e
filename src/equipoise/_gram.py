"""The two passes over the tasks' gradients that a fork makes: their Gram matrix, and their weighted sum.

Both are bound by memory traffic, not by arithmetic, so the gradients are read once each and nothing of their size is
written but the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gram_matrix", "weighted_sum"]

# Elements of the gathered gradients that one block may hold: 2 MiB in float32, what stays in a core's cache.
_BLOCK = 1 << 19
# Inner length of the small matrix products; long ones in one piece are slow for few rows, see benchmarks/speed.md.
_STRIP = 2048


def gram_matrix(gradients: Sequence[Sequence[Tensor]], /) -> Tensor:
    """Inner products of M gradients, each given in the same pieces: float32 (float64 for float64), shape [M, M]."""
    count = len(gradients)
    total: Tensor | None = None
    for pieces in zip(*gradients, strict=True):
        rows = torch.stack([piece.reshape(-1) for piece in pieces])
        if rows.dtype != torch.float64:
            rows = rows.float()
        gram = rows @ rows.T
        total = gram if total is None else total + gram.to(total.dtype)
    assert total is not None
    return total


def weighted_sum(gradients: Sequence[Tensor], weights: Sequence[Tensor], /) -> Tensor:
    """``Σ_m weights[m] · gradients[m]`` in the gradients' shape and dtype; sums of half precision in float32."""
    first = gradients[0]
    wide = first.dtype if first.dtype == torch.float64 else torch.float32
    total = torch.mul(first, weights[0]) if first.dtype == wide else first.to(wide) * weights[0]
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        total = total.addcmul(gradient, weight) if torch.is_grad_enabled() else total.addcmul_(gradient, weight)
    return total.to(first.dtype)
