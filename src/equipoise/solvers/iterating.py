"""A fixed number of iterations, which on a CPU ends where it would only repeat itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["iterated"]


def iterated(step: Callable[[Tensor], Tensor], start: Tensor, times: int) -> Tensor:
    """Return ``step(step(… start))``, with so many steps.

    The numbers of a converged iteration repeat, after one step or a few. On a CPU, where a look at them waits for
    nothing, the rest is then known: the result is the same to the bit. It is not looked at where a gradient is
    recorded, or a trace or a transform is under way.

    Args:
        step: depends on its argument alone.
        start: float64, of any shape.
        times: at least 0.
    """
    state = start
    if not _may_be_read(start):
        for _ in range(times):
            state = step(state)
        return state
    states: list[Tensor] = []
    first_seen: dict[tuple[int, ...], int] = {}
    for number in range(times):
        if state.requires_grad:
            state = step(state)
            continue
        seen = first_seen.setdefault(tuple(state.flatten().view(torch.int64).tolist()), number)
        if seen < number:
            return states[seen + (times - seen) % (number - seen)]
        states.append(state)
        state = step(state)
    return state


def _may_be_read(tensor: Tensor) -> bool:
    """Return whether the numbers can be looked at without a change of anything else."""
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    if _get_current_dispatch_mode_stack():  # it may record a graph, or count operations
        return False
    return tensor.is_cpu and type(tensor) is Tensor
