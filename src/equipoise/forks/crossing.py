"""Crossings of forks in an autograd graph, for checks that read the graph instead of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.autograd.graph import Node

from equipoise.forks.fork import Fork
from equipoise.forks.meeting import Meeting

__all__ = ["Crossing", "crossing_of"]


@dataclass(frozen=True)
class Crossing:
    """One use of a fork in an autograd graph.

    Attributes:
        fork: the fork.
        pieces: the number of its input tensors that require a gradient.
        stacked: the node has one output per piece, with a row per task, instead of one per task and piece.
    """

    fork: Fork
    pieces: int
    stacked: bool

    def branch(self, task: int, /) -> range:
        """Return the numbers of the node's outputs that make up a task's branch, or hold it as a row."""
        return range(self.pieces) if self.stacked else range(task * self.pieces, (task + 1) * self.pieces)


def crossing_of(node: Node, /) -> Crossing | None:
    """Return the use of a fork that ``node`` represents; None if it is another node.

    Example:
        >>> import torch
        >>> for_click, for_like = Fork(["click", "like"])(torch.ones(2, requires_grad=True))
        >>> for_like.output_nr in crossing_of(for_like.grad_fn).branch(1)
        True
    """
    context: Any = node
    if node.name() != f"{Meeting.__name__}Backward":
        return None
    return Crossing(context.fork, context.pieces, context.stacked)
