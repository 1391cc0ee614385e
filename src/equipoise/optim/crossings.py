"""Crossings from a task's own part of the graph into the shared part, at which one backward pass can weigh the task."""

from __future__ import annotations

import functools
import operator
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
            seed if in_shared else None for seed, in_shared in zip(seeds_of(losses, weights), self.roots, strict=True)
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
    nodes = losses_first([root.node for root in roots])
    leaves_below: dict[Node, int] = {}
    for node in reversed(nodes):
        leaf = getattr(node, "variable", None)
        found = 0 if leaf is None else _SHARED if id(leaf) in weighed else _OTHER
        for following, _ in node.next_functions:
            if following is not None:
                found |= leaves_below[following]
        leaves_below[node] = found
    crossings = Crossings([leaves_below[root.node] == _SHARED for root in roots])
    tasks: dict[Node, dict[int, int]] = {node: {} for node in nodes}  # by output, task m as bit 1 << m
    for number, root in enumerate(roots):
        tasks[root.node][root.output_nr] = tasks[root.node].get(root.output_nr, 0) | 1 << number
    for node in nodes:
        custom = isinstance(node, BackwardCFunction)
        copying = custom and is_copying(node)
        if custom and (
            kind_of(node) == "CheckpointFunction" or (alike and not copying and leaves_below[node] != _SHARED)
        ):
            return None
        outputs = tasks[node]
        of_all = functools.reduce(operator.or_, outputs.values(), 0)
        for place, (following, output) in enumerate(node.next_functions):
            if following is None:
                continue
            here = outputs.get(place, 0) if copying else of_all
            tasks[following][output] = tasks[following].get(output, 0) | here
            # each path from a loss to a shared leaf has one such edge, unless the loss lies in the shared part
            if leaves_below[following] == _SHARED != leaves_below[node]:
                if here.bit_count() != 1:
                    return None
                crossings.inputs.setdefault(node, {})[place] = here.bit_length() - 1
    return crossings


def seeds_of(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights as gradients of the losses; copies, since one may become the ``grad`` of a leaf."""
    return [weight.to(loss.dtype, copy=True).expand_as(loss) for loss, weight in zip(losses, weights, strict=True)]


def _weighing(weights: dict[int, Tensor]) -> Callable[[_Gradients, _Gradients], _Gradients]:
    """Return a hook that multiplies the gradients of the inputs of these numbers by their weights."""

    def weigh(gradients: _Gradients, _: _Gradients) -> _Gradients:
        return tuple(
            _product(gradient, weights[place]) if place in weights and gradient is not None else gradient
            for place, gradient in enumerate(gradients)
        )

    return weigh


def _product(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the product in the gradient's precision, for half precision rounded once."""
    precise = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.to(precise) * weight.to(gradient.device, precise)).to(gradient.dtype)
