"""A fork's step as a few Triton kernels: the Gram matrix, the weights, and the weighted sum.

Each has its plain form in PyTorch, which says what it computes: :func:`equipoise.forks.gram.gram_matrix`,
:func:`equipoise.forks.gram.weighted_sum` and :meth:`equipoise.MultiBalance.weigh`. Here the gradients are read where
they lie, once for the matrix and once for the sum, and the M×M step is one kernel in place of some sixty.
:mod:`equipoise.forks.kernel_choice` decides where they run. They need Triton, which PyTorch brings along for NVIDIA's
devices.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.forks.balance_options import BalanceOptions
from equipoise.forks.kernel_choice import MOST_IN_REGISTERS
from equipoise.forks.launching import launch
from equipoise.forks.triton_kernels import (
    balance_step_kernel,
    gram_and_balance_kernel,
    gram_by_tiles_kernel,
    gram_in_registers_kernel,
    weighted_sum_kernel,
)

__all__ = ["MOST_TASKS", "balance_step", "balanced_sum", "gram_matrix", "weighted_sum"]

MOST_TASKS = 32  # each gradient is an argument of its own

_LEAST_TILE = 16  # rows of a tile on the matrix units
_ALIGNMENT = 16  # bytes of a wide load; Triton knows of arguments whether they are multiples of it
_PARTS = 4096  # numbers of the Gram matrix's parts that are added up at a time


@dataclass(frozen=True)
class _Cut:
    """The cut of gradients into programs: numbers in a block, warps of a program, programs for each processor."""

    block: int
    warps: int
    programs: int


# Measured on an H200: 65,536 × 128 numbers of float32, and 65,536 × 256 of bfloat16, for 2 to 32 tasks.
_OF_FEW, _IN_FULL_REGISTERS, _TILES = _Cut(1024, 8, 4), _Cut(512, 4, 2), _Cut(64, 2, 8)
_SUM_BLOCK, _SUM_WARPS = 2048, 8

_workspaces: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by device and stream


def gram_matrix(tensors: Sequence[Tensor], divisor: Tensor | None) -> Tensor:
    """Return the inner products of M tensors of one shape, divided by ``divisor`` before; float32, shape [M, M]."""
    vectors, key = _in_one_piece(tensors)
    count, length, device = len(vectors), vectors[0].numel(), vectors[0].device
    cut, programs, steps = _cut_of(count, length, device)
    partial = torch.empty(programs, count, count, dtype=torch.float32, device=device)
    if key is not None:
        key = (*key, None if divisor is None else divisor.dtype)
    given = (vectors, length, steps, divisor, partial)
    if count <= MOST_IN_REGISTERS:
        launch(gram_in_registers_kernel, programs, cut.warps, key, *given, count, cut.block, divisor is not None)
    else:
        rows = max(_power_of_two(count), _LEAST_TILE)
        launch(
            gram_by_tiles_kernel, programs, cut.warps, key,
            *given, 1.0, count, rows, cut.block, divisor is not None, key is not None,
        )  # fmt: skip
    return partial.sum(0)


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``Σ_m weights[m] · tensors[m]`` of M tensors of one shape, in their dtype; summed in float32."""
    vectors, key = _in_one_piece(tensors)
    return _weighted(vectors, key, weights, torch.empty_like(vectors[0]))


def _weighted(vectors: Sequence[Tensor], key: tuple[Hashable, ...] | None, weights: Tensor, total: Tensor) -> Tensor:
    length = total.numel()
    if key is not None:
        key = (*key, weights.dtype)
    programs = max(-(-length // _SUM_BLOCK), 1)
    launch(weighted_sum_kernel, programs, _SUM_WARPS, key, vectors, weights, total, length, len(vectors), _SUM_BLOCK)
    return total


def balance_step(
    gram: Tensor,
    averages: Tensor,
    balance: Tensor,
    last: tuple[Tensor, Tensor, Tensor],
    *,
    options: BalanceOptions,
    known: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Do a step of MultiBalance with averaged lengths; move ``averages`` and ``balance`` on.

    Args:
        gram: float32, shape [M, M].
        averages: u and its correction, shape [2, M].
        balance: λ, shape [M].
        last: receive the Gram matrix with 0 for tasks that are not present, the weights, and which tasks are present.
        options: see :class:`BalanceOptions`.
        known: the weights of absent tasks, shape [M]; None for 1.

    Returns:
        the weights, and which tasks are present, in memory of their own.
    """
    count = len(gram)
    weights, present = torch.empty_like(last[1]), torch.empty_like(last[2])
    preferences, *numbers, cosine = options
    state = (gram, averages, balance, preferences, known, *last)
    key = (gram.device, count, cosine, *[None if tensor is None else tensor.dtype for tensor in state])
    launch(
        balance_step_kernel, 1, 1 if count <= MOST_IN_REGISTERS else 4, key,
        *state, weights, present, *map(float, numbers),
        count, _power_of_two(count), cosine, preferences is not None, known is not None,
    )  # fmt: skip
    return weights, present


def balanced_sum(
    tensors: Sequence[Tensor],
    divisor: Tensor | None,
    averages: Tensor,
    balance: Tensor,
    last: tuple[Tensor, Tensor, Tensor],
    *,
    options: BalanceOptions,
) -> tuple[Tensor, Tensor]:
    """Do as :func:`gram_matrix`, :func:`balance_step` and :func:`weighted_sum` one after the other, by two kernels.

    Args:
        tensors: the gradients of all tasks, at most ``MOST_IN_REGISTERS``.
        divisor: see :func:`gram_matrix`.
        averages, balance, last, options: see :func:`balance_step`.

    Returns:
        the sum, and the weights in memory of their own.
    """
    vectors, key = _in_one_piece(tensors)
    count, length, device = len(vectors), vectors[0].numel(), vectors[0].device
    cut, programs, steps = _cut_of(count, length, device)
    last_gram, last_weights, last_present = last
    counter, partial = _workspace(last_gram, programs * count * count)
    weights, total = torch.empty_like(last_weights), torch.empty_like(vectors[0])  # before the state moves
    preferences, gamma, pull, beta, unit, cosine = options
    state = (divisor, partial, counter, averages, balance, preferences, last_gram, last_weights, last_present)
    form = None
    if key is not None:
        form = (*key, cosine, *[None if tensor is None else tensor.dtype for tensor in state])
    rows = _power_of_two(count)
    launch(
        gram_and_balance_kernel, programs, cut.warps, form,
        vectors, length, steps, *state, weights, last_present, float(gamma), float(pull), float(beta), float(unit),
        count, cut.block, divisor is not None, rows, _PARTS // rows**2, cosine, preferences is not None,
    )  # fmt: skip
    return _weighted(vectors, key, weights, total), weights


@functools.lru_cache(1024)  # of a model's batches; the last one of an epoch may be shorter
def _cut_of(count: int, length: int, device: torch.device) -> tuple[_Cut, int, int]:
    """Return how gradients are cut, the number of programs, and the blocks of each."""
    cut = _OF_FEW if 2 * count <= MOST_IN_REGISTERS else _IN_FULL_REGISTERS if count <= MOST_IN_REGISTERS else _TILES
    programs = max(min(-(-length // cut.block), cut.programs * _processors(device)), 1)
    return cut, programs, -(-length // (cut.block * programs))


def _in_one_piece(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Hashable, ...] | None]:
    """Return the tensors, each in one piece of memory, and the key of their form; None where wide loads do not fit."""
    vectors = tuple([tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors])
    for vector in vectors:
        if vector.data_ptr() % _ALIGNMENT:
            return vectors, None
    first = vectors[0]
    length = first.numel()
    return vectors, (first.device, first.dtype, len(vectors), length == 1, length % _ALIGNMENT == 0, length < 1 << 31)


def _workspace(like: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return scratch memory for the next kernel on the current stream of this device.

    Each stream has its own: on two streams a fork's kernels may run at the same time. So does each kernel of a CUDA
    graph, since the graph may be replayed on any stream.

    Returns:
        a number of int32, 0 before the kernel, which must leave it so; and at least ``length`` numbers of float32.
    """
    device = like.get_device()
    if device < 0 or torch._C._cuda_isCurrentStreamCapturing():
        return like.new_zeros((), dtype=torch.int32), like.new_empty(length)
    place = device, torch._C._cuda_getCurrentRawStream(device)
    found = _workspaces.get(place)
    if found is None or len(found[1]) < length:
        found = _workspaces[place] = like.new_zeros((), dtype=torch.int32), like.new_empty(length)
    return found


@functools.cache
def _power_of_two(count: int) -> int:
    """Return the next power of two from the count on, at least 2."""
    return 1 << max((count - 1).bit_length(), 1)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
