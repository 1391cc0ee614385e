"""Crossings from a task's own part of the graph into the shared part, at which one backward pass can weigh the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from equipoise.reachability import losses_first

__all__ = ["Crossings", "crossings_into"]

_SHARED, _OTHER = 1, 2
_Gradients = tuple[Tensor | None, ...]


@dataclass
class Crossings:
    """The edges of the graph that lead from one task's own part into the shared part.

    Attributes:
        roots: for each loss, whether it lies in the shared part itself.
        inputs: node with a crossing -> the number of its loss, and of those inputs that lead into the shared part.
    """

    roots: list[bool]
    inputs: dict[Node, tuple[int, set[int]]] = field(default_factory=dict)

    def backward(self, losses: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Make one pass of the losses' plain sum, in which each gradient is weighed where it enters the shared part.

        Args:
            losses: those that the crossings were found for.
            weights: one scalar per loss.
        """
        seeds = [
            weight.to(loss.dtype).expand_as(loss) if in_shared else None
            for loss, weight, in_shared in zip(losses, weights, self.roots, strict=True)
        ]
        with ExitStack() as hooks:
            for node, (loss, inputs) in self.inputs.items():
                hooks.enter_context(node.register_hook(_weighing(weights[loss], inputs)))
            torch.autograd.backward(losses, seeds)


def crossings_into(shared: Iterable[Tensor], losses: Sequence[Tensor]) -> Crossings | None:
    """Find the crossings by a walk through the graph; None if several tasks enter the shared part together.

    They do so behind an operation on all tasks at once, such as a batched product of stacked towers, a compiled graph,
    and where other leaves lie below shared parameters.

    Args:
        shared: the leaves whose gradients are to be weighed; no other leaf's is.
        losses: scalars that require a gradient.
    """
    weighed = {id(p) for p in shared}
    roots = [get_gradient_edge(loss).node for loss in losses]
    nodes = losses_first(roots)
    leaves_below: dict[Node, int] = {}
    for node in reversed(nodes):
        leaf = getattr(node, "variable", None)
        found = 0 if leaf is None else _SHARED if id(leaf) in weighed else _OTHER
        for following, _ in node.next_functions:
            if following is not None:
                found |= leaves_below[following]
        leaves_below[node] = found
    crossings = Crossings([leaves_below[root] == _SHARED for root in roots])
    tasks = dict.fromkeys(nodes, 0)
    for number, root in enumerate(roots):
        tasks[root] |= 1 << number
    for node in nodes:
        here = tasks[node]
        inputs = set()
        for place, (following, _) in enumerate(node.next_functions):
            if following is not None:
                tasks[following] |= here
                if leaves_below[following] == _SHARED:
                    inputs.add(place)
        if inputs and leaves_below[node] != _SHARED:
            if here & (here - 1):  # more than one task
                return None
            crossings.inputs[node] = here.bit_length() - 1, inputs
    return crossings


def _weighing(weight: Tensor, inputs: set[int]) -> Callable[[_Gradients, _Gradients], _Gradients]:
    """Return a hook that multiplies the gradients of these inputs by the weight."""

    def weigh(gradients: _Gradients, _: _Gradients) -> _Gradients:
        return tuple(
            _product(gradient, weight) if place in inputs and gradient is not None else gradient
            for place, gradient in enumerate(gradients)
        )

    return weigh


def _product(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the product in the gradient's precision, for half precision rounded once."""
    precise = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.to(precise) * weight.to(precise)).to(gradient.dtype)
