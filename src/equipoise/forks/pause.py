"""A pause: backward passes for diagnostics, which leave the state of forks unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from equipoise.forks.fork import Fork

__all__ = ["paused"]


@contextmanager
def paused(model: nn.Module, /) -> Iterator[None]:
    """Let gradients cross the forks of ``model`` unweighed, as a plain sum; no fork counts the step.

    For diagnostics: inside, losses may go backward one by one, over a graph made before or inside, and a forward pass
    may run under any transform of ``torch.func``. State, weights and what a :class:`equipoise.Monitor` reads stay as
    they are, no rank waits for another, and a later backward over a graph made before is weighed as if nothing had
    been. A graph made inside stays unweighed. A compiled model must run forward inside as well.

    Args:
        model: a module that holds forks, or one itself; a model without any is left alone.

    Example:
        >>> import torch
        >>> fork = Fork(["click", "like"])
        >>> shared = torch.ones(3, requires_grad=True)
        >>> losses = [for_task.sum() for for_task in fork(shared)]
        >>> with paused(fork):
        ...     per_task = [torch.autograd.grad(loss, shared, retain_graph=True)[0] for loss in losses]
        >>> sum(losses).backward()  # the step itself
    """
    forks = [module for module in model.modules() if isinstance(module, Fork)]
    for fork in forks:
        fork.pauses += 1
    try:
        yield
    finally:
        for fork in forks:
            fork.pauses -= 1
