"""Tells forks by which factor a ``torch.amp.GradScaler`` has multiplied the losses of the backward under way.

A fork's averages outlive changes of that factor, so they are kept in unscaled units; but the gradients that arrive do
not say what they were multiplied by, and the training loop should stay as it is. So ``GradScaler.scale`` is watched
from the first fork on: what it returns carries a hook that runs when a backward starts from it, and writes the factor
into a buffer of every fork (a copy on the device, no sync). When that backward ends, the factor is 1 again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

__all__ = ["follow", "scaled_backward"]


class _Follower(Protocol):
    loss_scale: Tensor


_followers: WeakSet[_Follower] = WeakSet()
_no_backward = -1  # the engine's own number for "none"
_scaled = _no_backward  # the engine's number of the scaled backward that was announced last


def follow(follower: _Follower) -> None:
    """From now on ``follower.loss_scale`` holds the factor of the backward under way, 1 where there is none."""
    _watch_grad_scalers()
    _followers.add(follower)


def scaled_backward() -> bool:
    """Whether the backward under way started from scaled losses; one that broke off leaves nothing behind."""
    return _scaled != _no_backward and _scaled == torch._C._current_graph_task_id()


def _announce(scale: Tensor | float) -> None:
    # Through ``.data``: a compiled graph may have saved the buffer; this must not count as an in-place change.
    for follower in _followers:
        if isinstance(scale, Tensor):
            follower.loss_scale.data.copy_(scale, non_blocking=True)
        else:
            follower.loss_scale.data.fill_(scale)


@functools.cache
def _watch_grad_scalers() -> None:
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

        def at_start_of_backward(_: Tensor) -> None:
            global _scaled  # noqa: PLW0603 - a thread runs one backward at a time
            _scaled = torch._C._current_graph_task_id()
            _announce(factor)
            torch.autograd.Variable._execution_engine.queue_callback(lambda: _announce(1.0))

        loss.register_hook(at_start_of_backward)  # type: ignore[no-untyped-call]
