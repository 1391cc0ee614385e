"""The tasks' copies of a shared representation in autograd: identity forward, one weighed sum backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

import torch
from torch import Tensor

from equipoise.forks.gram import weighted_sum
from equipoise.grad_scaler import ScaledBackward, factor_in_compiled_graph, factor_of_backward

if TYPE_CHECKING:
    from equipoise.forks.fork import Fork

__all__ = ["Meeting", "Passage", "balanced"]

# Read once: a compiled backward cannot ask it.
_AUTOCAST_DEVICES = frozenset(
    device
    for device in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "maia", torch._C._get_privateuse1_backend_name())
    if torch.amp.is_autocast_available(device)
)
_NO_BATCH = (
    "A fork weighs the gradients of a batch against each other; under torch.func.vmap (or is_grads_batched=True) there "
    "is no batch. For the gradient of each example wrap the call: with equipoise.paused(model)."
)


@dataclass(eq=False)
class Passage:
    """One forward pass through a fork, and the weights of its first backward.

    Under nested transforms of ``torch.func`` one forward pass has several nodes; they share this.

    Attributes:
        enclosing: the scaled backward in which forward ran.
        arrived: the tasks whose gradients came in the first backward.
        weighed: that backward's weights, and which tasks were present; None before it.
    """

    enclosing: ReferenceType[ScaledBackward] | None
    arrived: set[int] = field(default_factory=set)
    weighed: tuple[Tensor, Tensor] | None = None


class Meeting(torch.autograd.Function):
    """Identity copies forward; the weighted sum of their gradients backward."""

    @staticmethod
    def forward(fork: Fork, _passage: Passage | None, *shared: Tensor) -> tuple[Tensor, ...]:
        """Copy every tensor for every task, in the order of tasks."""
        return tuple(tensor.view_as(tensor) for _ in fork.tasks for tensor in shared)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: tuple[Tensor, ...]) -> None:
        """Keep the passage for the backward, but no tensor."""
        fork, passage, *shared = inputs
        ctx.set_materialize_grads(False)
        ctx.fork = fork
        ctx.passage = passage
        ctx.device = shared[0].device.type
        ctx.pieces = len(shared)

    @staticmethod
    def vmap(_info: object, _in_dims: object, *_: object) -> Any:
        """Refuse: raises ``RuntimeError``."""
        raise RuntimeError(_NO_BATCH)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Weigh each tensor's gradients; nothing for the other arguments."""
        fork: Fork = ctx.fork
        by_piece = [cotangents[place :: ctx.pieces] for place in range(ctx.pieces)]
        if fork.pauses:
            ones = fork.last_weights.new_ones(len(fork.tasks))
            return None, None, *(balanced(piece, ones) for piece in by_piece)
        mixed = ctx.device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(ctx.device)
        # A backward inside an autocast region must not multiply norms in half precision.
        with torch.autocast(ctx.device, enabled=False) if mixed else nullcontext():
            return None, None, *fork.merge(by_piece, *_weights(ctx, by_piece))


def _weights(ctx: Any, by_piece: Sequence[Sequence[Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Return the weights of the graph's first backward, and the tasks present in it; a second one reuses them."""
    fork: Fork = ctx.fork
    if torch.compiler.is_compiling():
        first = [gradient for piece in by_piece for gradient in piece if gradient is not None][:1]
        return fork.weigh_step(by_piece, factor_in_compiled_graph(first[0]) if first else None)
    there = [(task, gradient) for piece in by_piece for task, gradient in enumerate(piece) if gradient is not None]
    if any(torch._C._functorch.is_legacy_batchedtensor(gradient) for _, gradient in there):
        raise RuntimeError(_NO_BATCH)
    arrived = {task for task, _ in there}
    passage: Passage = ctx.passage
    if passage.weighed is None:
        passage.arrived = arrived
        factor = factor_of_backward(passage.enclosing)
        passage.weighed = _outside_of_transforms(fork.weigh_step, by_piece, factor)
    if not arrived <= passage.arrived:
        raise RuntimeError(_one_by_one(fork.tasks, sorted(passage.arrived), sorted(arrived)))
    return passage.weighed


def _outside_of_transforms(
    weigh_step: Callable[..., tuple[Tensor, Tensor]],
    by_piece: Sequence[Sequence[Tensor | None]],
    factor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Find weights from unwrapped gradients, because state cannot be written from within ``torch.func.grad``."""
    if not torch._C._are_functorch_transforms_active():
        return weigh_step(by_piece, factor)
    plain = [[None if gradient is None else _unwrapped(gradient) for gradient in piece] for piece in by_piece]
    with torch._C._DisableFuncTorch():
        return weigh_step(plain, factor)


def _unwrapped(tensor: Tensor) -> Tensor:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise RuntimeError(_NO_BATCH)
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def balanced(piece: Sequence[Tensor | None], weights: Tensor) -> Tensor | None:
    """Return the weighted sum of the tasks' gradients of one tensor; a missing one is None, as is the sum of none."""
    gradients = [gradient for gradient in piece if gradient is not None]
    if not gradients:
        return None
    if len(gradients) < len(piece):
        weights = torch.stack([weights[task] for task, gradient in enumerate(piece) if gradient is not None])
    return weighted_sum(gradients, weights)


def _one_by_one(tasks: Sequence[str], first: Sequence[int], now: Sequence[int]) -> str:
    def names(places: Sequence[int]) -> str:
        return ", ".join(tasks[place] for place in places)

    return (
        "A fork weighs all tasks' gradients against each other, so it must see them in one backward. It has seen "
        f"{names(first)} in a first backward over this graph, and now {names(now)}. Sum the losses and call backward "
        "once: sum(losses).backward()."
    )
