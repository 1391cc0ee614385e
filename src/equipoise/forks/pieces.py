"""The tasks' gradients of a piece: of one of the tensors that cross a fork, as autograd delivers them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.forks.gram import rows_of, weighted_sum

__all__ = ["Piece", "as_rows", "balanced", "filled", "first_of", "tasks_in", "tensors_in"]

Piece = Sequence[Tensor | None] | Tensor
"""One gradient per task, None where none arrived; or the gradients of all tasks as one tensor, shape [M, …]."""


def tensors_in(piece: Piece, /) -> list[Tensor]:
    """Return the tensors that hold the gradients of a piece."""
    return [piece] if isinstance(piece, Tensor) else [gradient for gradient in piece if gradient is not None]


def first_of(piece: Piece, /) -> Tensor | None:
    """Return the first task's gradient that arrived; None if none did."""
    return piece[0] if isinstance(piece, Tensor) else next(iter(tensors_in(piece)), None)


def tasks_in(piece: Piece, /) -> set[int]:
    """Return the tasks whose gradients arrived; of one tensor all, because its values are on the device."""
    if isinstance(piece, Tensor):
        return set(range(len(piece)))
    return {task for task, gradient in enumerate(piece) if gradient is not None}


def filled(piece: Piece, /) -> Sequence[Tensor] | Tensor:
    """Return the gradients of a piece with zeros for those that did not arrive; nothing if none did."""
    if isinstance(piece, Tensor):
        return piece
    arrived = tensors_in(piece)
    return [torch.zeros_like(arrived[0]) if gradient is None else gradient for gradient in piece] if arrived else []


def as_rows(piece: Piece, /) -> Tensor:
    """Return the gradients of a piece, of which some arrived, as rows of one tensor, shape [M, N]."""
    gradients = filled(piece)
    return rows_of(gradients if isinstance(gradients, Tensor) else torch.stack(list(gradients)))


def balanced(piece: Piece, weights: Tensor, /) -> Tensor | None:
    """Return the weighted sum of the gradients of a piece; a missing one is None, as is the sum of none."""
    if isinstance(piece, Tensor):
        return weighted_sum(piece, weights)
    gradients = tensors_in(piece)
    if not gradients:
        return None
    if len(gradients) < len(piece):
        weights = torch.stack([weights[task] for task, gradient in enumerate(piece) if gradient is not None])
    return weighted_sum(gradients, weights)
