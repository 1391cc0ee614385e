"""The two passes over the tasks' gradients that a fork makes: their Gram matrix, and their weighted sum.

Both are bound by memory traffic rather than by arithmetic. On a CPU the shapes at hand (few rows, very long) are far
from what one matrix product does well, so the gradients go through it in pieces. The limits below were chosen by
measuring gradients of 4096 × 128 on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gram_matrix", "weighted_sum"]

_BY_DOTS = 4  # up to so many tasks single dot products are the fastest: nothing is copied
_IN_STRIPS = 16  # up to so many, a batch of products of short strips; above, one product
_BLOCK = 1 << 21  # numbers gathered at a time on a CPU: 8 MiB in float32
_BLOCK_ELSEWHERE = 1 << 27  # on an accelerator: bounds the extra memory to 512 MiB
_STRIP = 2048


def gram_matrix(gradients: Sequence[Sequence[Tensor]], divisor: Tensor | None = None, /) -> Tensor:
    """Inner products of M gradients that are given in the same pieces, shape [M, M].

    Half precision is multiplied and summed in float32, float64 in float64. With a ``divisor`` every gradient is divided
    by it before, since the squares of what a ``GradScaler`` has multiplied may overflow.
    """
    total: Tensor | None = None
    for pieces in zip(*gradients, strict=True):
        gram = _gram_of_vectors([piece.reshape(-1) for piece in pieces], divisor)
        total = gram if total is None else total + gram
    assert total is not None, "a fork hands at least one tensor to its tasks"
    return total


def weighted_sum(gradients: Sequence[Tensor], weights: Sequence[Tensor], /) -> Tensor:
    """``Σ_m weights[m] · gradients[m]`` in the gradients' shape and dtype; half precision is summed in float32.

    Differentiable with respect to the gradients where gradients are recorded (``create_graph=True``).
    """
    first = gradients[0]
    total = first.to(_wide(first.dtype)) * weights[0]
    recorded = torch.is_grad_enabled()
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        wide = gradient.to(total.dtype)
        total = total.addcmul(wide, weight) if recorded else total.addcmul_(wide, weight)
    return total.to(first.dtype)


def _gram_of_vectors(vectors: Sequence[Tensor], divisor: Tensor | None) -> Tensor:
    count, on_cpu = len(vectors), vectors[0].device.type == "cpu"
    if torch.compiler.is_compiling():
        return _product(_rows(vectors, divisor))
    wide = _wide(vectors[0].dtype)
    if on_cpu and count <= _BY_DOTS and vectors[0].dtype == wide and divisor is None:
        return _by_dots(vectors)
    columns = (_BLOCK if on_cpu else _BLOCK_ELSEWHERE) // count // _STRIP * _STRIP or _STRIP
    total = torch.zeros(count, count, dtype=wide, device=vectors[0].device)
    for parts in zip(*(torch.split(vector, columns) for vector in vectors), strict=True):
        rows = _rows(parts, divisor)
        whole = rows.shape[1] // _STRIP * _STRIP if on_cpu and count <= _IN_STRIPS else 0
        if whole:
            strips = rows[:, :whole].reshape(count, -1, _STRIP).transpose(0, 1)
            total += torch.bmm(strips, strips.transpose(1, 2)).sum(0)
        if whole < rows.shape[1]:
            total += _product(rows[:, whole:])
    return total


def _rows(vectors: Sequence[Tensor], divisor: Tensor | None) -> Tensor:
    rows = torch.stack(list(vectors))
    rows = rows.to(_wide(rows.dtype))
    return rows if divisor is None else rows / divisor


def _product(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _by_dots(vectors: Sequence[Tensor]) -> Tensor:
    count = len(vectors)
    dots = {
        (row, column): torch.dot(vectors[row], vectors[column]) for row in range(count) for column in range(row + 1)
    }
    return torch.stack(
        [dots[max(row, column), min(row, column)] for row in range(count) for column in range(count)]
    ).view(count, count)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
