"""A fork's step on a CPU as functions in C: the Gram matrix, the weights, and the weighted sum.

Each has its plain form in PyTorch, which says what it computes: :func:`equipoise.forks.gram.gram_matrix`,
:func:`equipoise.forks.gram.weighted_sum` and :meth:`equipoise.MultiBalance.weigh`. Here the gradients are read where
they lie, once for the matrix and once for the sum, and the M×M step is one call in place of some sixty.
:mod:`equipoise.forks.kernel_choice` decides where they run. The library is built with the package
(``hatch_build.py``), on Linux, where there is a C compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from equipoise.forks.balance_options import BalanceOptions
from equipoise.forks.kernel_choice import LIBRARY

__all__ = ["balance_step", "balanced_sum", "gram_matrix", "loaded", "weighted_sum"]

_SHORT_OF_MEMORY = "There is no memory for the inner products of {} tasks' gradients."


def loaded(library: Path) -> ctypes.CDLL:
    """Return a library built from ``cpu_kernels.c``, whose functions know the types of their arguments."""
    found = ctypes.CDLL(str(library))
    address, size, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
    flag, threads = ctypes.c_bool, ctypes.c_int
    rows = address, flag  # True of bfloat16
    found.equipoise_gram_matrix.argtypes = *rows, size, size, threads, address, address
    found.equipoise_weighted_sum.argtypes = *rows, address, size, size, threads, address, address
    found.equipoise_balance_step.argtypes = size, *[address] * 11, *[real] * 4, flag
    found.equipoise_balanced_sum.argtypes = *rows, size, size, threads, *[address] * 11, *[real] * 4, flag
    found.equipoise_weighted_sum.restype = found.equipoise_balance_step.restype = None
    return found


_library = loaded(LIBRARY)
# From PyTorch's own OpenMP runtime, which its C extension has loaded.
_run_in_threads = ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p)


def gram_matrix(tensors: Sequence[Tensor], divisor: Tensor | None) -> Tensor:
    """Return the inner products of M tensors of one shape, divided by ``divisor`` before; float32, shape [M, M].

    Raises:
        MemoryError: there is no memory for the partial sums.
    """
    if divisor is not None:
        tensors = [tensor.float() / divisor for tensor in tensors]
    vectors = [tensor.contiguous() for tensor in tensors]
    found = torch.empty(len(vectors), len(vectors), dtype=torch.float32)
    short_of_memory = _library.equipoise_gram_matrix(
        *_rows(vectors), len(vectors), vectors[0].numel(), torch.get_num_threads(), _run_in_threads, found.data_ptr()
    )
    if short_of_memory:
        raise MemoryError(_SHORT_OF_MEMORY.format(len(vectors)))
    return found


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``Σ_m weights[m] · tensors[m]`` of M tensors of one shape, in their dtype; summed in float32."""
    vectors = [tensor.contiguous() for tensor in tensors]
    factors = weights.to(torch.float32).contiguous()
    total = torch.empty_like(vectors[0])
    _library.equipoise_weighted_sum(
        *_rows(vectors), _address(factors, len(vectors)), len(vectors), total.numel(), torch.get_num_threads(),
        _run_in_threads, total.data_ptr(),
    )  # fmt: skip
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
    """Do as :func:`equipoise.forks.kernels.balance_step`, with the same arguments.

    Raises:
        TypeError: a tensor of the fork's state is not of float32, on the CPU and in one piece.
    """
    count = len(gram)
    last_gram, last_weights, last_present = last
    preferences, *numbers, cosine = options
    weights, present, room = torch.empty_like(last_weights), torch.empty_like(last_present), gram.new_empty(3 * count)
    _library.equipoise_balance_step(
        count, _address(gram.contiguous(), count * count), _address(averages, 2 * count), _address(balance, count),
        None if preferences is None else _address(preferences, count),
        None if known is None else _address(known, count),
        _address(last_gram, count * count), _address(last_weights, count),
        _address(last_present, count, torch.bool), weights.data_ptr(), present.data_ptr(), room.data_ptr(),
        *numbers, cosine,
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
    """Do as :func:`equipoise.forks.kernels.balanced_sum`, with the same arguments; for any number of tasks.

    Raises:
        MemoryError: as :func:`gram_matrix`.
        TypeError: as :func:`balance_step`.
    """
    if divisor is not None:
        weights, _ = balance_step(gram_matrix(tensors, divisor), averages, balance, last, options=options, known=None)
        return weighted_sum(tensors, weights), weights
    vectors = [tensor.contiguous() for tensor in tensors]
    count, total = len(vectors), torch.empty_like(vectors[0])
    last_gram, last_weights, last_present = last
    preferences, *numbers, cosine = options
    weights = torch.empty_like(last_weights)
    present = _address(last_present, count, torch.bool)
    room = last_gram.new_empty(count * (count + 3))  # of float32, as `_address` checks
    short_of_memory = _library.equipoise_balanced_sum(
        *_rows(vectors), count, total.numel(), torch.get_num_threads(), _run_in_threads,
        _address(averages, 2 * count), _address(balance, count),
        None if preferences is None else _address(preferences, count),
        _address(last_gram, count * count), _address(last_weights, count), present,
        weights.data_ptr(), present, room.data_ptr(), total.data_ptr(),
        *numbers, cosine,
    )  # fmt: skip
    if short_of_memory:
        raise MemoryError(_SHORT_OF_MEMORY.format(count))
    return total, weights


def _rows(vectors: Sequence[Tensor]) -> tuple[ctypes.Array[ctypes.c_void_p], bool]:
    """Return where vectors of float32 or bfloat16 lie, and whether they are of bfloat16."""
    first = vectors[0]
    halves = first.dtype == torch.bfloat16
    addresses = [_address(vector, first.numel(), torch.bfloat16 if halves else torch.float32) for vector in vectors]
    return (ctypes.c_void_p * len(vectors))(*addresses), halves


def _address(tensor: Tensor, length: int, dtype: torch.dtype = torch.float32) -> int:
    """Return where the numbers of a tensor lie; C would read beyond others without a word."""
    if not (tensor.dtype == dtype and tensor.is_cpu and tensor.is_contiguous() and tensor.numel() == length):
        raise TypeError(
            f"A fork on a CPU expected {length} numbers of {dtype} in one piece of its memory, found a tensor of "
            f"{tensor.dtype}, shape {list(tensor.shape)}, on {tensor.device}. If a state has been assigned to the "
            "fork, load it without assign=True, or call the fork's double()."
        )
    return tensor.data_ptr()
