"""Stacks of dense layers, experts and the gates that mix them, and the towers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Experts", "gate", "mixture", "mlp", "tower"]


def mlp(inputs: int, widths: Sequence[int], /) -> nn.Sequential:
    """Build linear layers of the given widths, each followed by a ReLU; without widths, none.

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
    """Build the layers of one task: an :func:`mlp`, then one linear unit; takes [B, inputs], returns logits [B].

    Example:
        >>> import torch
        >>> tower(8, (4,))(torch.zeros(3, 8)).shape
        torch.Size([3])
    """
    return nn.Sequential(*mlp(inputs, widths), nn.Linear((inputs, *widths)[-1], 1), nn.Flatten(0))


class Experts(nn.ModuleList):
    """Networks side by side that read the same input.

    Takes shape [B, inputs]; returns the experts' outputs, shape [B, count, widths[-1]].

    Example:
        >>> Experts(3, 8, (4,))(torch.zeros(5, 8)).shape
        torch.Size([5, 3, 4])
    """

    def __init__(self, count: int, inputs: int, widths: Sequence[int], /) -> None:
        super().__init__(mlp(inputs, widths) for _ in range(count))

    def forward(self, inputs: Tensor, /) -> Tensor:
        """Stack the outputs of the experts."""
        # A plain loop: on CPU one product for all first layers, or batched products, took 1.01 to 1.14 times its time,
        # from the default sizes to 8 experts of 512-256 (benchmarks/experts.py).
        return torch.stack([expert(inputs) for expert in self], dim=1)


def gate(inputs: int, experts: int, /) -> nn.Linear:
    """Build a gate: a linear map without bias from an input to the scores of experts, for :func:`mixture`."""
    return nn.Linear(inputs, experts, bias=False)


def mixture(scores: Tensor, outputs: Tensor, /) -> Tensor:
    """Mix outputs of experts with the softmax of their scores.

    Args:
        scores: of each expert, shape [B, experts].
        outputs: of each expert, shape [B, experts, width].

    Returns:
        Shape [B, width].

    Example:
        >>> mixture(torch.zeros(1, 2), torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]))
        tensor([[2., 2.]])
    """
    # Not bmm, which takes a slow path on CPU for matrices as small as these: 2.5 times the time at the default widths.
    return (scores.softmax(dim=1).unsqueeze(2) * outputs).sum(dim=1)
