"""Stacks of dense layers: the ones below and beside the towers, and the towers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

__all__ = ["mlp", "tower"]


def mlp(inputs: int, widths: Sequence[int], /) -> nn.Sequential:
    """Linear layers of the given widths, each followed by a ReLU; no widths, no layers.

    Takes shape [..., inputs]; returns [..., widths[-1]], or its input where there is no width.

    Raises:
        ValueError: a width is under 1.

    Example:
        >>> mlp(8, (4, 2))
        Sequential(
          (0): Linear(in_features=8, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
          (3): ReLU()
        )
    """
    if any(width < 1 for width in widths):
        raise ValueError(f"Widths of layers must be at least 1, found {tuple(widths)}.")
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def tower(inputs: int, widths: Sequence[int], /) -> nn.Sequential:
    """A task's own layers: an :func:`mlp`, then one linear unit; takes [B, inputs], returns the logits [B].

    Example:
        >>> import torch
        >>> tower(8, (4,))(torch.zeros(3, 8)).shape
        torch.Size([3])
    """
    return nn.Sequential(*mlp(inputs, widths), nn.Linear((inputs, *widths)[-1], 1), nn.Flatten(0))
