"""Tells a fork the factor by which a ``torch.amp.GradScaler`` multiplied the losses of the backward under way.

A fork's averages outlive changes of the factor, so they are kept in unscaled units; but the gradients that arrive do
not say what they were multiplied by, and the training loop should stay as it is. So what ``GradScaler.scale`` returns
carries a hook: when a backward starts from it, the hook notes the factor under the engine's number of that backward,
which no other one shares, neither in another thread nor nested in this one. The note lives as long as the engine holds
it, which is until that backward ends, well or badly.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor

__all__ = [
    "ScaledBackward",
    "enclosing_backward",
    "factor_in_compiled_graph",
    "factor_of_backward",
    "note_factor",
    "note_grad_scalers",
]


class ScaledBackward:
    """A backward under way that started from scaled losses; the engine holds it as a callback for the end."""

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def __call__(self) -> None:
        """Do nothing: the engine frees this object at the end of the backward."""


_NO_BACKWARD = -1  # the engine's own number for "none"
_under_way: dict[int, ReferenceType[ScaledBackward]] = {}  # by the engine's number of the backward
_seen_by: WeakKeyDictionary[object, ReferenceType[ScaledBackward]] = WeakKeyDictionary()


def enclosing_backward(owner: object) -> ReferenceType[ScaledBackward] | None:
    """Return the scaled backward in which a forward pass of ``owner`` runs; None outside of one.

    A reentrant checkpoint calls forward in a backward, and starts another one over its graph. If it holds a second
    checkpoint, forward runs once more, now in that other backward, of which nothing says that it is part of the first:
    but ``owner`` has been there before.
    """
    task = torch._C._current_graph_task_id()
    if task == _NO_BACKWARD:
        return None
    found = _under_way.get(task)
    if found is not None:
        _seen_by[owner] = found
    return _seen_by.get(owner)


def factor_of_backward(enclosing: ReferenceType[ScaledBackward] | None = None) -> Tensor | None:
    """Return the factor on the losses of the backward under way; None where there is none.

    Args:
        enclosing: what :func:`enclosing_backward` returned in the forward pass, for a backward within a backward.
    """
    reference = _under_way.get(torch._C._current_graph_task_id(), enclosing)
    found = None if reference is None else reference()
    return None if found is None else found.factor


def note_factor(factor: Tensor) -> None:
    """Note the factor on the losses of the backward under way, in which this is called."""
    note = ScaledBackward(factor)
    torch.autograd.Variable._execution_engine.queue_callback(note)
    task = torch._C._current_graph_task_id()
    _under_way[task] = ref(note, lambda _: _under_way.pop(task, None))


@torch.library.custom_op("equipoise::loss_scale", mutates_args=())
def factor_in_compiled_graph(gradient: Tensor) -> Tensor:
    """Return the factor on the losses of the backward under way, 1 where there is none; float32, no dimensions.

    A compiled graph calls it in every backward. It takes a gradient, although it needs only its device, so
    that the compiler cannot move it into the forward pass.
    """
    factor = factor_of_backward()
    if factor is None:
        return torch.ones((), device=gradient.device)
    return factor.to(gradient.device, torch.float32, copy=True).view(())


@factor_in_compiled_graph.register_fake
def _(gradient: Tensor) -> Tensor:
    return torch.empty((), device=gradient.device)


@functools.cache
def note_grad_scalers() -> None:
    """Make every ``torch.amp.GradScaler`` leave a note in the backwards that start from its losses, from now on."""
    plain_scale = torch.amp.GradScaler.scale

    @functools.wraps(plain_scale)
    def scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = plain_scale(self, outputs)
        if self.is_enabled() and not torch.compiler.is_compiling():
            # An iterator would be used up here; GradScaler itself returns tensors, lists, tuples or iterators (map).
            scaled = scaled if isinstance(scaled, Tensor | list | tuple) else list(scaled)
            _mark(scaled, self._scale)
        return scaled

    torch.amp.GradScaler.scale = scale  # type: ignore[method-assign]


def _mark(loss: Tensor | Iterable[Any], factor: Tensor | None) -> None:
    if not isinstance(loss, Tensor):
        for part in loss:
            _mark(part, factor)
    elif loss.requires_grad and factor is not None:
        loss.register_hook(lambda _: note_factor(factor))  # type: ignore[no-untyped-call]
