"""Starts a Triton kernel in the form that was built for a launch like it.

``kernel[programs,](…)`` looks at every argument of every launch for the form that fits. A fork's launches differ in
little, which they state as a key.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from triton import knobs
from triton.compiler import CompiledKernel

__all__ = ["launch"]

_built: dict[Hashable, tuple[CompiledKernel, int]] = {}  # with the device on which it was loaded


def launch(kernel: Any, programs: int, warps: int, key: Hashable | None, *arguments: Any) -> None:
    """Start a kernel on the current device and stream.

    Args:
        kernel: a function under ``triton.jit``.
        programs: how many programs run it.
        warps: of each program.
        key: whatever the kernel's form depends on: the device, dtypes, constants, which arguments are None, whether
            pointers and whole numbers are multiples of 16 where the kernel is told. None lets Triton look.
        arguments: all of them, constants too, in the kernel's order.
    """
    place = None if key is None else (id(kernel), key)  # a kernel hashes its source
    built, device = (None, None) if place is None else _built.get(place, (None, None))
    if built is not None and device == torch._C._cuda_getDevice():
        # As Triton does once it has found the form; without its calls of hooks, where a profiler has added none.
        stream = torch._C._cuda_getCurrentRawStream(device)
        enter, leave, metadata = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, None
        if _heard(enter, leave):
            metadata = built.launch_metadata((programs, 1, 1), stream, *arguments)
        else:
            enter = leave = None
        built.run(programs, 1, 1, stream, built.function, built.packed_metadata, metadata, enter, leave, *arguments)
        return
    built = kernel[programs,](*arguments, num_warps=warps)
    if place is not None and isinstance(built, CompiledKernel):  # Triton's interpreter builds none
        _built[place] = built, torch._C._cuda_getDevice()


def _heard(*hooks: Any) -> bool:
    """Return whether any of the hooks calls anything: it is a chain, which a profiler fills, or a function."""
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)
