"""Decides where a fork computes by kernels of its own, and where in PyTorch's operations.

On NVIDIA's devices, in single or half precision, it takes Triton's; on a CPU, in float32 or bfloat16, those in C.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["LIBRARY", "MOST_IN_REGISTERS", "kernels_for"]

LIBRARY = Path(__file__).with_name("libcpu_kernels.so")  # built with the package: hatch_build.py

MOST_IN_REGISTERS = 8  # tasks whose products for one place fit into a thread's registers on an accelerator

_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_DTYPES_ON_CPU = frozenset({torch.float32, torch.bfloat16})
_LEAST_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16


def kernels_for(tensors: Sequence[Tensor] | Tensor, /) -> ModuleType | None:
    """Return the module of kernels that takes these tensors, or the rows of this one; None for the plain form.

    That is :mod:`equipoise.forks.kernels` or :mod:`equipoise.forks.cpu_kernels`. The plain form stays where a graph is
    compiled or transformed, for subclasses of tensors, in other precisions, and on other devices; on an accelerator
    also for many tasks, and, with one warning, where Triton cannot build a kernel, as it cannot without a C compiler;
    on a CPU also where the package was installed without its library.

    Args:
        tensors: of one device and dtype, at least one.
    """
    first = tensors[0]
    if first.is_cpu:
        return _cpu_kernels() if first.dtype in _DTYPES_ON_CPU and _plain(tensors) else None
    if not first.is_cuda or first.dtype not in _DTYPES or not _plain(tensors):
        return None
    kernels = _kernels_on(first.device)
    return kernels if kernels is not None and len(tensors) <= kernels.MOST_TASKS else None


def _plain(tensors: Sequence[Tensor] | Tensor) -> bool:
    """Return whether these are tensors of numbers in memory: nothing traced, transformed or wrapped."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    for tensor in [tensors] if isinstance(tensors, Tensor) else tensors:
        if type(tensor) is not Tensor or tensor.is_neg():  # a view whose numbers lie in memory with the other sign
            return False
        try:
            address = tensor.data_ptr()
        except RuntimeError:  # wrapped by a transform, which may be over, or sparse
            return False
        if not address and tensor.numel():  # a tensor of zeros without memory
            return False
    return True


@functools.cache
def _cpu_kernels() -> ModuleType | None:
    if not LIBRARY.exists():
        return None
    try:
        from equipoise.forks import cpu_kernels
    except (OSError, AttributeError) as error:  # built for another machine, or a PyTorch with another OpenMP runtime
        warnings.warn(
            f"Forks take several times as long as they need on the CPU: {LIBRARY} cannot be used here "
            f"({type(error).__name__}: {error}). Install equipoise anew on this machine, or delete that file. "
            "Results differ by rounding alone.",
            stacklevel=2,
        )
        return None
    return cpu_kernels


@functools.cache
def _kernels_on(device: torch.device) -> ModuleType | None:
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return None
    if find_spec("triton") is None:  # a build of PyTorch without it, as for Windows
        return None
    try:
        from equipoise.forks import kernels

        for _ in range(2):  # the second launch takes what the first has built
            kernels.weighted_sum([torch.ones(1, device=device)], torch.ones(1, device=device))
    except Exception as error:  # noqa: BLE001 - a missing compiler, a broken one, a missing header: each raises its own
        warnings.warn(
            f"Forks take several times as long as they need on {torch.cuda.get_device_name(device)}: Triton cannot "
            f"build or start their kernels here ({type(error).__name__}: {error}). To build them it needs a C compiler "
            "and Python's header files (on Debian and Ubuntu: apt install gcc python3-dev). Results differ by rounding "
            "alone.",
            stacklevel=2,
        )
        return None
    return kernels
