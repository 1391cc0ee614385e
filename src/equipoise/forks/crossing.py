"""Where an autograd graph crosses a fork, for those who look at a graph rather than at a model."""

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
        pieces: how many tensors it was given that require a gradient.
    """

    fork: Fork
    pieces: int

    def task_of(self, output: int, /) -> int:
        """Return the position of the task whose branch holds this output of the node."""
        return output // self.pieces


def crossing_of(node: Node, /) -> Crossing | None:
    """Return the use of a fork that ``node`` stands for; None for a node that is no fork's.

    Example:
        >>> import torch
        >>> for_click, for_like = Fork(["click", "like"])(torch.ones(2, requires_grad=True))
        >>> crossing_of(for_like.grad_fn).task_of(for_like.output_nr)
        1
    """
    context: Any = node
    return Crossing(context.fork, context.pieces) if node.name() == f"{Meeting.__name__}Backward" else None
