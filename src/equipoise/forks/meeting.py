"""The tasks' copies of a shared representation in autograd: identity forward, one weighed sum backward.

The copies are separate tensors, or one tensor with a first dimension of tasks. Backward this makes no difference but in
the form in which the gradients arrive.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import ReferenceType

import torch
from torch import Tensor

from equipoise.forks.gram import squared_lengths
from equipoise.forks.pieces import Piece, balanced, filled, tasks_in, tensors_in
from equipoise.forks.structure import tasks_first
from equipoise.grad_scaler import ScaledBackward, factor_in_compiled_graph, factor_of_backward

if TYPE_CHECKING:
    from equipoise.forks.fork import Fork

__all__ = ["Meeting", "Passage", "in_captured_graph"]

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


@dataclass(eq=False, slots=True)
class Passage:
    """One forward pass through a fork, and the weights of its first backward.

    Under nested transforms of ``torch.func`` one forward pass has several nodes; they share this.

    Attributes:
        enclosing: the scaled backward in which forward ran.
        arrived: the tasks whose gradients came in the first backward, as far as it can be seen without their values.
        squares: the squared lengths of their gradients on this rank, shape [M]; None if it did not measure them.
        weighed: that backward's weights, and which tasks were present; None before it.
    """

    enclosing: ReferenceType[ScaledBackward] | None
    arrived: Collection[int] = ()
    squares: Tensor | None = None
    weighed: tuple[Tensor, Tensor] | None = None


class Meeting(torch.autograd.Function):
    """Identity copies forward; the weighted sum of their gradients backward."""

    @classmethod
    def of(cls, fork: Fork, passage: Passage | None, stacked: bool, *shared: Tensor) -> tuple[Tensor, ...]:
        """Do as ``apply``, which binds the signature of :meth:`forward` in every call, in a third of its time.

        Where a graph is compiled (there is no passage) or transformed it is called.
        """
        if (
            passage is None
            or torch._C._are_functorch_transforms_active()
            or any(map(torch._C._functorch.is_functorch_wrapped_tensor, shared))
        ):
            found = cls.apply(fork, passage, stacked, *shared)  # type: ignore[no-untyped-call]
        else:
            found = super(torch.autograd.Function, cls).apply(fork, passage, stacked, *shared)  # type: ignore[misc]
        return cast(tuple[Tensor, ...], found)

    @staticmethod
    def forward(fork: Fork, _passage: Passage | None, stacked: bool, *shared: Tensor) -> tuple[Tensor, ...]:
        """Copy every tensor for every task, in the order of tasks; or stacked, all of a tensor's copies as one."""
        if stacked:
            return tuple([tasks_first(tensor, len(fork.tasks)) for tensor in shared])
        return tuple([tensor.view_as(tensor) for _ in fork.tasks for tensor in shared])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: tuple[Tensor, ...]) -> None:
        """Keep the passage for the backward, but no tensor."""
        ctx.set_materialize_grads(False)
        ctx.fork, ctx.passage, ctx.stacked, shared = inputs[:4]
        ctx.device = shared.device.type
        ctx.pieces = len(inputs) - 3

    @staticmethod
    def vmap(_info: object, _in_dims: object, *_: object) -> Any:
        """Refuse: raises ``RuntimeError``."""
        raise RuntimeError(_NO_BATCH)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Weigh each tensor's gradients; nothing for the other arguments."""
        if ctx.device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(ctx.device):
            # A backward inside an autocast region must not multiply norms in half precision.
            with torch.autocast(ctx.device, enabled=False):
                return _sent_on(ctx, cotangents)
        return _sent_on(ctx, cotangents)


def _sent_on(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    sent = _step_at_once(ctx, cotangents)
    if sent is not None:
        return None, None, None, sent
    fork: Fork = ctx.fork
    pieces: list[Piece]
    if ctx.stacked:
        pieces = [[None] * len(fork.tasks) if gradients is None else gradients for gradients in cotangents]
    else:
        pieces = [cotangents[place :: ctx.pieces] for place in range(ctx.pieces)]
    if fork.pauses:
        ones = fork.last_weights.new_ones(len(fork.tasks))
        return None, None, None, *(balanced(piece, ones) for piece in pieces)
    return None, None, None, *fork.merge(pieces, *_weights(ctx, pieces))


def _step_at_once(ctx: Any, gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Do a first backward's step in one call and note its weights; return the sum, or None where that cannot be.

    It needs the gradients of all tasks of a single tensor, and a graph that neither is compiled nor records gradients.
    """
    fork: Fork = ctx.fork
    passage: Passage | None = ctx.passage
    if passage is None or passage.weighed is not None or ctx.stacked or ctx.pieces > 1 or fork.pauses:
        return None
    here = [gradient for gradient in gradients if gradient is not None]
    if len(here) < len(gradients) or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    found = fork.step_at_once(here, factor_of_backward(passage.enclosing))
    if found is None:
        return None
    passage.arrived = range(len(gradients))
    passage.weighed = found[1], fork.last_present  # merging by weights does not look at the tasks present
    return found[0]


def _weights(ctx: Any, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """Return the weights of the graph's first backward, and the tasks present in it; a second one reuses them."""
    fork: Fork = ctx.fork
    if torch.compiler.is_compiling():
        tensors = [tensor for piece in pieces for tensor in tensors_in(piece)]
        factor = factor_in_compiled_graph(tensors[0]) if tensors else None
        with torch.no_grad():
            return fork.weigh_step(fork.measure_step(pieces, factor))
    arrived: set[int] = set()
    for piece in pieces:
        if any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors_in(piece)):
            raise RuntimeError(_NO_BATCH)
        arrived |= tasks_in(piece)
    factor = factor_of_backward(ctx.passage.enclosing)
    with torch.no_grad():
        if not torch._C._are_functorch_transforms_active():
            return _weights_of_passage(ctx, pieces, arrived, factor)
        plain = [_unwrapped_piece(piece) for piece in pieces]
        with torch._C._DisableFuncTorch():  # state cannot be written from within torch.func.grad
            return _weights_of_passage(ctx, plain, arrived, factor)


def _weights_of_passage(
    ctx: Any, pieces: Sequence[Piece], arrived: set[int], factor: Tensor | None
) -> tuple[Tensor, Tensor]:
    fork: Fork = ctx.fork
    passage: Passage = ctx.passage
    if passage.weighed is None:
        passage.arrived = arrived
        gram = fork.measure_step(pieces, factor)
        passage.squares = None if gram is None else gram.diagonal()
        passage.weighed = fork.weigh_step(gram)
    elif not arrived.issubset(passage.arrived):
        raise RuntimeError(_one_by_one(fork.tasks, sorted(passage.arrived), sorted(arrived)))
    elif ctx.stacked:
        _refuse_rows_that_come_late(fork.tasks, pieces, passage.squares, factor)
    return passage.weighed


def _refuse_rows_that_come_late(
    tasks: Sequence[str], pieces: Sequence[Piece], before: Tensor | None, factor: Tensor | None
) -> None:
    """Refuse losses that go backward one by one: a row was zero in the first backward, and is not now.

    Waits for the device. Nothing is refused in a step that measures no gradient: its weights do not depend on them.
    """
    lengths = [squared_lengths(gradients, factor) for piece in pieces if len(gradients := filled(piece))]
    if before is None or not lengths or in_captured_graph():
        return
    first = [task for task, square in enumerate(before.tolist()) if square != 0]  # NaN is a gradient, too
    now = [task for task, square in enumerate(functools.reduce(torch.add, lengths).tolist()) if square != 0]
    if not set(now) <= set(first):
        raise RuntimeError(_one_by_one(tasks, first, now))


def _unwrapped_piece(piece: Piece) -> Piece:
    if isinstance(piece, Tensor):
        return _unwrapped(piece)
    return [None if gradient is None else _unwrapped(gradient) for gradient in piece]


def _unwrapped(tensor: Tensor) -> Tensor:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise RuntimeError(_NO_BATCH)
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def in_captured_graph() -> bool:
    """Return whether a CUDA graph is being captured, in which nothing can be read from the device."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _one_by_one(tasks: Sequence[str], first: Sequence[int], now: Sequence[int]) -> str:
    def names(places: Sequence[int]) -> str:
        return ", ".join(tasks[place] for place in places)

    return (
        "A fork weighs all tasks' gradients against each other, so it must see them in one backward. It has seen "
        f"{names(first)} in a first backward over this graph, and now {names(now)}. Sum the losses and call backward "
        "once: sum(losses).backward()."
    )
