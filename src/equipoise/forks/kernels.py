"""A fork's step as a few Triton kernels: the Gram matrix, the weights, and the weighted sum.

Each has its plain form in PyTorch, which says what it computes: :func:`equipoise.forks.gram.gram_matrix`,
:func:`equipoise.forks.gram.weighted_sum` and :meth:`equipoise.MultiBalance.weigh`. Here the gradients are read where
they lie, once for the matrix and once for the sum, and the M×M step is one kernel in place of some sixty.
:mod:`equipoise.forks.kernel_choice` decides where they run. They need Triton, which PyTorch brings along for NVIDIA's
devices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from equipoise.forks.triton_kernels import (
    balance_step_kernel,
    gram_by_tiles_kernel,
    gram_in_registers_kernel,
    weighted_sum_kernel,
)

__all__ = ["MOST_TASKS", "balance_step", "gram_matrix", "weighted_sum"]

MOST_TASKS = 32  # each gradient is an argument of its own

_LEAST_TILE, _ALIGNMENT = 16, 16  # rows of a tile on the matrix units; bytes of a wide load
_IN_REGISTERS = 8  # most tasks whose products for one place fit into a thread's registers


@dataclass(frozen=True)
class _Cut:
    """The cut of gradients into programs: numbers in a block, warps of a program, programs for each processor."""

    block: int
    warps: int
    programs: int


# Measured on an H200: 65,536 × 128 numbers of float32, and 65,536 × 256 of bfloat16, for 2 to 32 tasks.
_OF_FEW, _IN_FULL_REGISTERS, _TILES = _Cut(1024, 8, 4), _Cut(512, 4, 2), _Cut(64, 2, 8)
_SUM_BLOCK, _SUM_WARPS = 2048, 8


def gram_matrix(tensors: Sequence[Tensor], divisor: Tensor | None) -> Tensor:
    """Return the inner products of M tensors of one shape, divided by ``divisor`` before; float32, shape [M, M]."""
    vectors = _in_one_piece(tensors)
    count, length, device = len(vectors), vectors[0].numel(), vectors[0].device
    cut = _OF_FEW if 2 * count <= _IN_REGISTERS else _IN_FULL_REGISTERS if count <= _IN_REGISTERS else _TILES
    programs = max(min(triton.cdiv(length, cut.block), cut.programs * _processors(device)), 1)
    partial = torch.empty(programs, count, count, dtype=torch.float32, device=device)
    steps = triton.cdiv(length, cut.block * programs)
    options = {"COUNT": count, "BLOCK": cut.block, "DIVIDED": divisor is not None, "num_warps": cut.warps}
    if count <= _IN_REGISTERS:
        gram_in_registers_kernel[programs,](vectors, length, steps, divisor, partial, **options)
    else:
        gram_by_tiles_kernel[programs,](
            vectors, length, steps, divisor, partial, 1.0, ROWS=max(triton.next_power_of_2(count), _LEAST_TILE),
            ALIGNED=all(vector.data_ptr() % _ALIGNMENT == 0 for vector in vectors), **options,
        )  # fmt: skip
    return partial.sum(0)


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``Σ_m weights[m] · tensors[m]`` of M tensors of one shape, in their dtype; summed in float32."""
    vectors = _in_one_piece(tensors)
    total = torch.empty_like(vectors[0])
    length = total.numel()
    weighted_sum_kernel[max(triton.cdiv(length, _SUM_BLOCK), 1),](
        vectors, weights, total, length, COUNT=len(vectors), BLOCK=_SUM_BLOCK, num_warps=_SUM_WARPS
    )
    return total


def balance_step(
    gram: Tensor,
    averages: Tensor,
    balance: Tensor,
    last: tuple[Tensor, Tensor, Tensor],
    *,
    preferences: Tensor | None,
    known: Tensor | None,
    gamma: float,
    rho: float,
    beta: float,
    even: float,
    mean: bool,
    cosine: bool,
) -> tuple[Tensor, Tensor]:
    """Do a step of MultiBalance with averaged lengths; move ``averages`` and ``balance`` on.

    Args:
        gram: float32, shape [M, M].
        averages: u and its correction, shape [2, M].
        balance: λ, shape [M].
        last: receive the Gram matrix with 0 for tasks that are not present, the weights, and which tasks are present.
        preferences: factors of the weights, shape [M]; None for 1.
        known: the weights of absent tasks, shape [M]; None for 1.
        gamma: γ, the share of the newest length.
        rho: ρ, the pull towards equal λ.
        beta: β, the length of a step of λ.
        even: 1/M in float32.
        mean: divide the weights by M.
        cosine: move λ by the cosines.

    Returns:
        the weights, and which tasks are present, in memory of their own.
    """
    count = len(gram)
    weights, present = torch.empty_like(last[1]), torch.empty_like(last[2])
    balance_step_kernel[1,](
        gram, averages, balance, preferences, known, *last, weights, present, gamma, rho * even, beta,
        1.0 if mean else even,
        COUNT=count, ROWS=max(triton.next_power_of_2(count), 2), COSINE=cosine, PREFERRING=preferences is not None,
        KNOWN=known is not None, num_warps=1 if count <= _IN_REGISTERS else 4,
    )  # fmt: skip
    return weights, present


def _in_one_piece(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple([tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors])


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
