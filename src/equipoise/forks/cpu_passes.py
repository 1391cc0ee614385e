"""A fork's two passes over the gradients on a CPU, in C: the Gram matrix, and the weighted sum.

Each has its plain form in PyTorch, which says what it computes: :func:`equipoise.forks.gram.gram_matrix` and
:func:`equipoise.forks.gram.weighted_sum`. Here the gradients are read where they lie, once for the matrix and once for
the sum. :mod:`equipoise.forks.kernel_choice` decides where they run. The library is built with the package
(``hatch_build.py``) on Linux, where there is a C compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from equipoise.forks.kernel_choice import LIBRARY

__all__ = ["functions_of", "gram_matrix", "weighted_sum"]


def functions_of(library: Path) -> tuple[Callable[..., int], Callable[..., None]]:
    """Return the Gram matrix and the weighted sum of a library built from ``cpu_passes.c``."""
    loaded = ctypes.CDLL(str(library))
    gram, total = loaded.equipoise_gram_matrix, loaded.equipoise_weighted_sum
    address, number = ctypes.c_void_p, ctypes.c_long
    gram.argtypes = address, number, number, ctypes.c_int, address, address
    total.argtypes = address, *gram.argtypes
    total.restype = None
    return gram, total


_gram_matrix, _weighted_sum = functions_of(LIBRARY)
# From PyTorch's own OpenMP runtime, which its C extension has loaded.
_run_in_threads = ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p)


def gram_matrix(tensors: Sequence[Tensor], divisor: Tensor | None) -> Tensor:
    """Return the inner products of M tensors of one shape, divided by ``divisor`` before; float32, shape [M, M].

    Raises:
        MemoryError: there is no memory for the partial sums.
    """
    vectors = [tensor.contiguous() if divisor is None else tensor.contiguous() / divisor for tensor in tensors]
    found = torch.empty(len(vectors), len(vectors))
    if _gram_matrix(
        _addresses(vectors),
        len(vectors),
        vectors[0].numel(),
        torch.get_num_threads(),
        _run_in_threads,
        found.data_ptr(),
    ):
        raise MemoryError(f"There is no memory for the inner products of {len(vectors)} tasks' gradients.")
    return found


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``Σ_m weights[m] · tensors[m]`` of M float32 tensors of one shape."""
    vectors = [tensor.contiguous() for tensor in tensors]
    weights = weights.to(torch.float32).contiguous()
    total = torch.empty_like(vectors[0])
    _weighted_sum(
        _addresses(vectors), weights.data_ptr(), len(vectors), total.numel(), torch.get_num_threads(), _run_in_threads,
        total.data_ptr(),
    )  # fmt: skip
    return total


def _addresses(vectors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(vectors))(*[vector.data_ptr() for vector in vectors])
