"""A fork's step from the Gram matrix to the weights, replayed from a recording where no change can go unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from equipoise.replaying import recordable, replayed

if TYPE_CHECKING:
    from equipoise.forks.fork import Fork

__all__ = ["step_of"]

_PLAIN = (bool, int, float, str, type(None))
# Attributes on which the weights for a Gram matrix do not depend.
_NOT_IN_A_STEP = frozenset(vars(nn.Module())) | {"_backwards", "_under_way", "process_group"}


def step_of(fork: Fork, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :meth:`Fork.find_step` returns, the weights and the tasks present."""
    if not recordable(gram) or vars(type(fork)).get("replayable") is not True:
        return fork.find_step(gram)
    depends_on = _depends_on(fork, gram.device)
    if depends_on is None:
        return fork.find_step(gram)
    options, tensors = depends_on
    weights, present = replayed(fork, fork.find_step, [gram], options=options, reads=tensors)
    return weights, present


def _depends_on(fork: Fork, device: torch.device) -> tuple[dict[str, object], list[Tensor]] | None:
    """Return the attributes that may decide a step, and the tensors; None if a change might go unseen."""
    options: dict[str, object] = {}
    tensors = [tensor for tensor in fork._buffers.values() if tensor is not None]
    for name, value in vars(fork).items():
        if isinstance(value, Tensor):
            tensors.append(value)
        elif name not in _NOT_IN_A_STEP:
            options[name] = tuple(value) if isinstance(value, list) else value
    entries = [entry for value in options.values() for entry in (value if isinstance(value, tuple) else [value])]
    if not all(isinstance(entry, _PLAIN) for entry in entries) or fork._parameters or fork._modules:
        return None
    if not all(type(tensor) is Tensor and tensor.device == device for tensor in tensors):
        return None  # a graph keeps the value of a number on the CPU
    return options | {"methods": (type(fork).weigh, type(fork).find_step)}, tensors
