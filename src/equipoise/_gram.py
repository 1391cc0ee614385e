"""The two passes over the tasks' gradients that a fork makes: their Gram matrix, and their weighted sum.

Both are bound by memory traffic, not by arithmetic. Up to ``FEW`` tasks the gradients stay where autograd has put them.
More are copied side by side as they arrive (`Gathering`), so that each pass is one product over all of them, and
autograd can use its memory for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["FEW", "Gathering", "gram_matrix", "gram_of_rows", "weighted_rows", "weighted_sum"]

FEW = 4  # up to so many tasks single dot products are the fastest on a CPU (4096 × 128 numbers each, two cores)
_STRIP = 1024  # columns in one of a batch of products, which on a CPU beats one product of few and very long rows
_BLOCK = 1 << 27  # numbers brought to a wider type at a time: bounds the extra memory to 512 MiB


class Gathering:
    """The gradients of one backward side by side: for every piece of the shared structure a row per task.

    Args:
        tasks: how many tasks there are.
        pieces: the shared tensors.
        spare: memory of an earlier gathering, or nothing; reused if it fits.
    """

    def __init__(self, tasks: int, pieces: Sequence[Tensor], spare: Sequence[Tensor]) -> None:
        self._tasks = tasks
        self._pieces = [(piece.shape, piece.numel(), piece.dtype, piece.device) for piece in pieces]
        self._spare = spare
        self._slots: list[list[Tensor]] = []
        self.rows: list[Tensor] = []

    def take(self, task: int, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Copies one task's gradients into its rows and returns the rows in the gradients' place."""
        if not self.rows:
            self._allocate()
        slots = zip(self._slots[task], gradients, strict=True)
        return tuple([None if gradient is None else slot.copy_(gradient) for slot, gradient in slots])

    def _allocate(self) -> None:
        spare, self._spare = self._spare, ()
        fitting = [(self._tasks, numel, dtype, device) for _, numel, dtype, device in self._pieces]
        fits = [(*rows.shape, rows.dtype, rows.device) for rows in spare] == fitting
        self.rows = list(spare) if fits else [_empty_rows(*wanted) for wanted in fitting]
        by_piece = [
            [row.view(shape) for row in rows.unbind(0)]
            for rows, (shape, *_) in zip(self.rows, self._pieces, strict=True)
        ]
        self._slots = [list(slots) for slots in zip(*by_piece, strict=True)]


def gram_matrix(gradients: Sequence[Tensor], divisor: Tensor | None = None, /) -> Tensor:
    """Inner products of M tensors of one shape, shape [M, M]; see :func:`gram_of_rows`."""
    vectors = [gradient.reshape(-1) for gradient in gradients]
    first = vectors[0]
    if (
        len(vectors) <= FEW and first.is_cpu and first.dtype == _wide(first.dtype) and divisor is None
    ) and not torch.compiler.is_compiling():
        return _by_dots(vectors)
    return gram_of_rows(torch.stack(vectors), divisor)


def gram_of_rows(rows: Tensor, divisor: Tensor | None = None, /) -> Tensor:
    """Inner products of the rows of a matrix of shape [M, N], shape [M, M].

    Half precision is multiplied and summed in float32, float64 in float64. With a ``divisor`` every gradient is divided
    by it before, since the squares of what a ``GradScaler`` has multiplied may overflow.
    """
    count, columns = rows.shape
    wide = _wide(rows.dtype)
    if torch.compiler.is_compiling() or (rows.dtype == wide and divisor is None):
        rows = rows.to(wide)
        return _product(rows if divisor is None else rows / divisor)
    total = torch.zeros(count, count, dtype=wide, device=rows.device)
    for block in torch.split(rows, max(_BLOCK // count, 1), dim=1) if columns else ():
        total += _product(block.to(wide) if divisor is None else block.to(wide) / divisor)
    return total


def weighted_sum(gradients: Sequence[Tensor], weights: Tensor, /) -> Tensor:
    """``Σ_m weights[m] · gradients[m]`` in the gradients' shape and dtype; half precision is summed in float32.

    Differentiable with respect to the gradients where gradients are recorded (``create_graph=True``).
    """
    first = gradients[0]
    wide = _wide(first.dtype)
    recorded = torch.is_grad_enabled()
    if first.is_cpu and not recorded and not torch.compiler.is_compiling():
        return _weighted_on_cpu([gradient.to(wide) for gradient in gradients], weights.to(wide)).to(first.dtype)
    split = weights.unbind(0)
    total = first.to(wide) * split[0]
    for gradient, weight in zip(gradients[1:], split[1:], strict=True):
        total = total.addcmul(gradient.to(wide), weight) if recorded else total.addcmul_(gradient.to(wide), weight)
    return total.to(first.dtype)


def weighted_rows(rows: Tensor, weights: Tensor, /) -> Tensor:
    """:func:`weighted_sum` of the rows of a matrix of shape [M, N], shape [N]."""
    if rows.dtype == _wide(rows.dtype):
        return torch.mv(rows.T, weights.to(rows.dtype))
    return weighted_sum(rows.unbind(0), weights)


def _weighted_on_cpu(gradients: Sequence[Tensor], weights: Tensor) -> Tensor:
    scalars: list[float] = weights.tolist()
    if len(gradients) == 1:
        return gradients[0] * scalars[0]
    # The outer product with a single number is the one operation that takes two weighted tensors in a single pass.
    column = gradients[0].reshape(-1, 1)
    pair = torch.addr(column, gradients[1].reshape(-1), weights[1:2], beta=scalars[0])
    total: Tensor = pair.view(gradients[0].shape)
    for gradient, weight in zip(gradients[2:], scalars[2:], strict=True):
        total.add_(gradient, alpha=weight)
    return total


def _empty_rows(count: int, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Rows that start a power of two apart fall on the same lines of a CPU's caches; 66 lines of 64 bytes more do not.
    stride = -(-numel // 2048) * 2048 + 1056 if device.type == "cpu" else numel
    return torch.empty(count, stride, dtype=dtype, device=device)[:, :numel]


def _product(rows: Tensor) -> Tensor:
    columns = rows.shape[1]
    whole = columns // _STRIP * _STRIP
    if not whole or not rows.is_cpu or torch.compiler.is_compiling():
        return rows @ rows.T
    strips = rows[:, :whole].view(rows.shape[0], -1, _STRIP).transpose(0, 1)
    total = torch.bmm(strips, strips.transpose(1, 2)).sum(0)
    return total if whole == columns else total + rows[:, whole:] @ rows[:, whole:].T


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
