"""A total loss whose ``backward()`` calls that of an optimizer with one loss per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["total_of"]


def total_of(losses: Sequence[Tensor | None], backward: Callable[[list[Tensor | None]], None]) -> Tensor:
    """Return the sum of the losses, whose backward pass calls ``backward`` with each loss times the sum's gradient."""
    device = next((loss.device for loss in losses if loss is not None), None)
    # Makes the sum require a gradient; ``backward`` alone goes through the losses' own graphs.
    anchor = torch.zeros((), device=device, requires_grad=True)
    total: Tensor = _Total.apply(anchor, losses, backward)  # type: ignore[no-untyped-call]
    return total


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, losses: Sequence[Tensor | None], backward: Callable[[list[Tensor | None]], None]
    ) -> Tensor:
        ctx.losses, ctx.take = losses, backward
        found = [loss.detach().reshape(()) for loss in losses if loss is not None]
        return torch.stack(found).sum() if found else anchor.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        with torch.enable_grad():
            ctx.take([None if loss is None else loss * gradient for loss in ctx.losses])
        return None, None, None
