"""The two passes over the tasks' gradients that a fork makes: their Gram matrix, and their weighted sum.

Both are bound by memory traffic, not by arithmetic. Where :mod:`equipoise.forks.kernel_choice` knows kernels, in Triton
(:mod:`equipoise.forks.kernels`) or in C (:mod:`equipoise.forks.cpu_kernels`), these are taken. This is the plain form,
for everything else. On a CPU the shapes at hand (few rows, very long) are far from what one matrix product does well,
and fresh memory is dear, so the gradients go through one small workspace block by block. The numbers below were chosen
by measuring gradients of 4096 × 128 on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from equipoise.forks.kernel_choice import kernels_for

__all__ = ["divisor_beside", "gram_matrix", "rows_of", "squared_lengths", "weighted_sum"]

_FEW = 4  # largest number of tasks for which single dot products, without copies, are fastest on a CPU
# A CPU's dot product in float32 adds with few accumulators: the longer it is the less precise, and of 2**18 numbers it
# is wrong by less than two parts in a million. What the tasks have in a block also stays in the cache for all products.
_DOT = 1 << 18
# Numbers of each gradient in a block on a CPU, and, of many tasks, of all of them.
_COLUMNS, _ROOM_ON_CPU = 1 << 16, 1 << 21
_ROOM = 1 << 27  # numbers in a block on an accelerator: bounds the workspace to 512 MiB
# Columns of each of the products into which a block is cut: on a CPU they stay in the cache, and an accelerator would
# make one long product of few rows on a single one of its processors.
_STRIP_ON_CPU, _STRIP = 1 << 10, 1 << 13
_GROUP = 32  # of many rows, a CPU multiplies so many at a time with those before, and nothing twice but within a group
_PADDING = 1056  # rows a power of two apart fall on the same lines of a CPU's caches; 66 lines more do not


def gram_matrix(gradients: Sequence[Tensor] | Tensor, divisor: Tensor | None = None, /) -> Tensor:
    """Return the inner products of M tensors of one shape, or of the M rows of one tensor; shape [M, M].

    Half precision is multiplied and summed in float32, float64 in float64. With a ``divisor`` every gradient is divided
    by it before, since the squares of what a ``GradScaler`` has multiplied may overflow.
    """
    divisor = divisor_beside(gradients[0], divisor)
    kernels = kernels_for(gradients)
    if kernels is not None:
        found: Tensor = kernels.gram_matrix(list(gradients), divisor)
        return found
    rows = rows_of(gradients) if isinstance(gradients, Tensor) else None
    vectors = [gradient.reshape(-1) for gradient in gradients] if rows is None else rows.unbind()
    count, first = len(vectors), vectors[0]
    wide = _wide(first.dtype)
    if torch.compiler.is_compiling():
        rows = (torch.stack(list(vectors)) if rows is None else rows).to(wide)
        return _symmetric(_product(rows if divisor is None else rows / divisor))
    if count <= _FEW and first.is_cpu and first.dtype == wide and divisor is None:
        return _by_dots(vectors)
    columns = min(_COLUMNS, _ROOM_ON_CPU // count) if first.is_cpu else _ROOM // count
    columns = min(max(columns // _STRIP_ON_CPU, 1) * _STRIP_ON_CPU, first.numel())
    if rows is None or first.dtype != wide or divisor is not None:
        blocks = _copied(vectors, columns, wide, divisor)
    else:
        blocks = iter(torch.split(rows, columns, 1))
    total = torch.zeros(count, count, dtype=wide, device=first.device)
    for block in blocks:
        total += _product(block)
    return _symmetric(total)


def divisor_beside(gradient: Tensor, divisor: Tensor | None, /) -> Tensor | None:
    """Return the divisor on the device of the gradient: a scaler may be on another one than this part of the model."""
    if divisor is None:
        return None
    # Into the memory of a CPU a copy without waiting would be read before it has arrived.
    return divisor.to(gradient.device, non_blocking=not gradient.is_cpu)


def squared_lengths(gradients: Sequence[Tensor] | Tensor, divisor: Tensor | None = None, /) -> Tensor:
    """Return the diagonal of :func:`gram_matrix` alone, shape [M]."""
    return torch.cat([gram_matrix([gradient], divisor).view(1) for gradient in gradients])


def weighted_sum(gradients: Sequence[Tensor] | Tensor, weights: Tensor, /) -> Tensor:
    """Return ``Σ_m weights[m] · gradients[m]`` in a gradient's shape and dtype; half precision is summed in float32.

    Differentiable with respect to the gradients where gradients are recorded (``create_graph=True``).
    """
    recorded = torch.is_grad_enabled()
    kernels = None if recorded else kernels_for(gradients)
    if kernels is not None:
        found: Tensor = kernels.weighted_sum(list(gradients), weights)
        return found
    if isinstance(gradients, Tensor):
        if gradients.dtype == _wide(gradients.dtype):  # one pass, where the loop below makes one for each task
            return torch.mv(rows_of(gradients).T, weights.to(gradients.dtype)).view(gradients.shape[1:])
        gradients = gradients.unbind()
    first = gradients[0]
    wide = _wide(first.dtype)
    if first.is_cpu and not recorded and not torch.compiler.is_compiling():
        return _weighted_on_cpu(gradients, weights.to(wide)).to(first.dtype)
    split = weights.unbind(0)
    total = first.to(wide) * split[0]
    # addcmul_ widens half precision on the way, without a copy; on Apple's devices it does not.
    as_it_comes = not recorded and first.device.type != "mps"
    for gradient, weight in zip(gradients[1:], split[1:], strict=True):
        added = gradient if as_it_comes else gradient.to(wide)
        total = total.addcmul(added, weight) if recorded else total.addcmul_(added, weight)
    return total.to(first.dtype)


def _weighted_on_cpu(gradients: Sequence[Tensor], weights: Tensor) -> Tensor:
    scalars: list[float] = weights.tolist()
    first = gradients[0].to(weights.dtype)
    if len(gradients) == 1:
        return first * scalars[0]
    # The outer product with a single number is the one operation that takes two weighted tensors in a single pass.
    second = gradients[1].to(weights.dtype).reshape(-1)
    pair = torch.addr(first.reshape(-1, 1), second, weights[1:2], beta=scalars[0])
    total: Tensor = pair.view(first.shape)
    for gradient, weight in zip(gradients[2:], scalars[2:], strict=True):
        total.add_(gradient, alpha=weight)
    return total


def rows_of(gradients: Tensor, /) -> Tensor:
    """Return a tensor of shape [M, …] as M rows, shape [M, N]; a copy only where a row does not lie in one piece."""
    return gradients.reshape(len(gradients), math.prod(gradients.shape[1:]))


def _copied(vectors: Sequence[Tensor], columns: int, wide: torch.dtype, divisor: Tensor | None) -> Iterator[Tensor]:
    """Yield blocks of so many columns of the gradients as rows; the next block overwrites the one before."""
    workspace = torch.empty(len(vectors), columns + _PADDING, dtype=wide, device=vectors[0].device)
    for parts in zip(*(torch.split(vector, columns) for vector in vectors), strict=True):
        rows = workspace[:, : parts[0].numel()]
        torch._foreach_copy_(rows.unbind(0), parts)
        yield rows if divisor is None else rows.div_(divisor)


def _product(rows: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return rows @ rows.T
    count = len(rows)
    if not rows.is_cpu or count < 2 * _GROUP:
        return _by_strips(rows, rows)
    total = rows.new_empty(count, count)
    for start in range(0, count, _GROUP):
        end = min(start + _GROUP, count)
        part = _by_strips(rows[start:end], rows[:end])
        total[start:end, :end] = part
        total[:end, start:end] = part.T
    return total


def _by_strips(left: Tensor, right: Tensor) -> Tensor:
    columns, strip = left.shape[1], _STRIP_ON_CPU if left.is_cpu else _STRIP
    whole = columns // strip * strip
    if not whole:
        return left @ right.T
    of_left, of_right = (rows[:, :whole].view(len(rows), -1, strip).transpose(0, 1) for rows in (left, right))
    total = torch.bmm(of_left, of_right.transpose(1, 2)).sum(0)
    return total if whole == columns else total + left[:, whole:] @ right[:, whole:].T


def _symmetric(total: Tensor) -> Tensor:
    """Make the matrix symmetric to the last bit; the kernels of some CPUs do not."""
    return (total + total.T) / 2


def _by_dots(vectors: Sequence[Tensor]) -> Tensor:
    count = len(vectors)
    below = [(row, column) for row in range(count) for column in range(row + 1)]
    blocks = zip(*(torch.split(vector, _DOT) for vector in vectors), strict=True)
    dots = torch.stack([torch.dot(parts[row], parts[column]) for parts in blocks for row, column in below])
    of_pairs = dots.view(-1, len(below)).sum(0).unbind()
    place = {pair: of_pairs[index] for index, pair in enumerate(below)}
    return torch.stack(
        [place[max(row, column), min(row, column)] for row in range(count) for column in range(count)]
    ).view(count, count)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
