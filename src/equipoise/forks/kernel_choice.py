"""Decides where a fork computes with its Triton kernels: on NVIDIA's devices, in single or half precision."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["kernels_for"]

_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_LEAST_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16


def kernels_for(tensors: Sequence[Tensor] | Tensor, /) -> ModuleType | None:
    """Return :mod:`equipoise.forks.kernels` where it takes these tensors, or the rows of this one, else None.

    The plain form stays where a graph is compiled or transformed, for subclasses of tensors, in float64, for many
    tasks, and on other devices. It also stays, with one warning, where Triton cannot build a kernel, as it cannot
    without a C compiler.

    Args:
        tensors: of one device and dtype, at least one.
    """
    whole = [tensors] if isinstance(tensors, Tensor) else tensors
    first = whole[0]
    if (
        not first.is_cuda
        or first.dtype not in _DTYPES
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or any(type(tensor) is not Tensor for tensor in whole)
    ):
        return None
    kernels = _kernels_on(first.device)
    return kernels if kernels is not None and len(tensors) <= kernels.MOST_TASKS else None


@functools.cache
def _kernels_on(device: torch.device) -> ModuleType | None:
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return None
    try:
        from equipoise.forks import kernels
    except ImportError:  # a build of PyTorch without Triton, as for Windows
        return None
    try:
        kernels.weighted_sum([torch.ones(1, device=device)], torch.ones(1, device=device))
    except Exception as error:  # noqa: BLE001 - a missing compiler, a broken one, a missing header: each raises its own
        warnings.warn(
            f"Forks take several times as long as they need on {torch.cuda.get_device_name(device)}: Triton cannot "
            f"build their kernels here ({type(error).__name__}: {error}). Triton needs a C compiler and Python's "
            "header files (on Debian and Ubuntu: apt install gcc python3-dev). Results differ by rounding alone.",
            stacklevel=2,
        )
        return None
    return kernels
