"""Crossings from a task's own part of the graph into the shared part, at which one backward pass can weigh the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

from equipoise.reachability import is_copying, kind_of, losses_first

__all__ = ["Crossings", "crossings_into", "seeds_of"]

_SHARED, _OTHER = 1, 2
_Gradients = tuple[Tensor | None, ...]


@dataclass
class Crossings:
    """The edges of the graph that lead from one task's own part into the shared part.

    Attributes:
        roots: for each loss, whether it lies in the shared part itself.
        inputs: node with a crossing -> the number of each input that leads into the shared part -> that of its loss.
    """

    roots: list[bool]
    inputs: dict[Node, dict[int, int]] = field(default_factory=dict)

    def backward(self, losses: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Make one pass of the losses' plain sum, in which each gradient is weighed where it enters the shared part.

        Args:
            losses: those that the crossings were found for.
            weights: one scalar per loss.
        """
        seeds = [
            seeds_of([loss], [weight])[0] if in_shared else None
            for loss, weight, in_shared in zip(losses, weights, self.roots, strict=True)
        ]
        with ExitStack() as hooks:
            for node, inputs in self.inputs.items():
                of_input = {place: weights[loss] for place, loss in inputs.items()}
                hooks.enter_context(node.register_hook(_weighing(of_input)))
            torch.autograd.backward(losses, seeds)


def crossings_into(shared: Iterable[Tensor], losses: Sequence[Tensor], *, alike: bool = False) -> Crossings | None:
    """Find the crossings by a walk through the graph; None if one pass cannot take the place of two.

    So it is where several tasks enter the shared part together: behind an operation on all tasks at once, such as a
    batched product of stacked towers, a compiled graph or a tensor of all losses, and where other leaves lie below
    shared parameters. So it is, too, with activation checkpointing of the reentrant kind, which hides parameters. Other
    custom functions must take the parameters that they use as inputs, as autograd needs for any gradient.

    Args:
        shared: the leaves whose gradients are to be weighed; no other leaf's is.
        losses: scalars that require a gradient.
        alike: make no pass that other ranks may not make, too: None where a custom function outside the shared part
            may exchange something between the ranks, once in each pass.
    """
    weighed = {id(p) for p in shared}
    roots = [get_gradient_edge(loss) for loss in losses]
    inputs_of = losses_first([root.node for root in roots])
    leaves_below = _leaves_below(inputs_of, weighed)
    custom = [node for node in inputs_of if isinstance(node, BackwardCFunction)]
    copying = set(filter(is_copying, custom))
    for node in custom:
        exchanging = alike and node not in copying and leaves_below[node] != _SHARED
        if exchanging or kind_of(node) == "CheckpointFunction":
            return None
    arrived = dict.fromkeys(inputs_of, 0)  # tasks at each node, task m as bit 1 << m
    at_output: dict[tuple[Node, int], int] = {}  # tasks at each output of a copying node

    def arrive(node: Node, output: int, tasks: int) -> None:
        arrived[node] |= tasks
        if node in copying:
            at_output[node, output] = at_output.get((node, output), 0) | tasks

    for number, root in enumerate(roots):
        arrive(root.node, root.output_nr, 1 << number)
    crossings = Crossings([leaves_below[root.node] == _SHARED for root in roots])
    for node, inputs in inputs_of.items():
        if leaves_below[node] == _SHARED:
            continue  # no edge leads out of the shared part
        for place, (following, output) in enumerate(inputs):
            if following is None:
                continue
            here = at_output.get((node, place), 0) if node in copying else arrived[node]
            if leaves_below[following] != _SHARED:
                arrive(following, output, here)
            elif here.bit_count() == 1:
                # each path from a loss to a shared leaf has one such edge, unless the loss lies in the shared part
                crossings.inputs.setdefault(node, {})[place] = here.bit_length() - 1
            else:
                return None
    return crossings


def _leaves_below(inputs_of: dict[Node, Sequence[tuple[Node | None, int]]], weighed: set[int]) -> dict[Node, int]:
    """Return which kinds of leaves lie at or below each node."""
    found: dict[Node, int] = {}
    for node, inputs in reversed(inputs_of.items()):
        kinds = 0
        for following, _ in inputs:
            if following is not None:
                kinds |= found[following]
        leaf = None if inputs else getattr(node, "variable", None)
        if leaf is not None:
            kinds = _SHARED if id(leaf) in weighed else _OTHER
        found[node] = kinds
    return found


def seeds_of(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights as gradients of the losses; copies, since one may become the ``grad`` of a leaf."""
    return [weight.to(loss.dtype, copy=True).expand_as(loss) for loss, weight in zip(losses, weights, strict=True)]


def _weighing(weights: dict[int, Tensor]) -> Callable[[_Gradients, _Gradients], _Gradients]:
    """Return a hook that multiplies the gradients of the inputs of these numbers by their weights."""

    def weigh(gradients: _Gradients, _: _Gradients) -> _Gradients:
        found = list(gradients)
        for place, weight in weights.items():
            gradient = found[place]
            if gradient is not None:
                found[place] = _product(gradient, weight)
        return tuple(found)

    return weigh


def _product(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the product in the gradient's precision, for half precision rounded once."""
    weight = weight.to(gradient.device)
    if gradient.dtype.itemsize < torch.float32.itemsize:
        return (gradient.to(torch.float32) * weight).to(gradient.dtype)
    # A weight in float64 needs no copy: the kernel takes its number. Two scalars give the wider one's precision.
    return (gradient * weight).to(gradient.dtype)
