"""Figure 2 of the PUB paper: two parameters, two losses, five starts; PUB beside plain Adam and MultiBalance.

Run ``python examples/toy_figure2.py`` to draw docs/toy_figure2.png again (some minutes; needs matplotlib). Losses and starts
are those of arXiv 2410.05806, which took them from CAGrad (arXiv 2110.14048). The best that both losses can have at once,
in equal parts, is (−15.09, −15.09).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from equipoise.multibalance import MultiBalance
from equipoise.optim import PUB

STARTS = ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))
BALANCED = (-15.09, -15.09)
LEARNING_RATE = 1e-2
STEPS = 8000


def losses(x: Tensor) -> Tensor:
    """Both losses at points ``x`` [..., 2], shape [..., 2]."""
    x1, x2 = x.unbind(-1)
    f1 = ((0.5 * (-x1 - 7) - torch.tanh(-x2)).abs().clamp(min=5e-6)).log() + 6
    f2 = ((0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs().clamp(min=5e-6)).log() + 6
    h1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    h2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    c1 = torch.tanh(x2 / 2).clamp(min=0)
    c2 = torch.tanh(-x2 / 2).clamp(min=0)
    return torch.stack((c1 * f1 + c2 * h1, c1 * f2 + c2 * h2), -1)


def train(method: str, start: tuple[float, float], steps: int = STEPS) -> Tensor:
    """The points that ``method`` ("Adam", "MultiBalance" or "PUB") passes from ``start``, shape [steps + 1, 2]."""
    x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    adam = torch.optim.Adam([x], lr=LEARNING_RATE)
    points = [x.detach().clone()]
    if method == "PUB":
        pub = PUB(adam, shared=[x], update_every=1, utility="update", step="authors")
        for _ in range(steps):
            pub.zero_grad()
            pub.backward(losses(x))
            pub.step()
            points.append(x.detach().clone())
        return torch.stack(points)
    fork = MultiBalance(2) if method == "MultiBalance" else None
    for _ in range(steps):
        adam.zero_grad()
        if fork is None:
            losses(x).sum().backward()
        else:
            first, second = fork(x)  # the parameters themselves are what the tasks share
            (losses(first)[0] + losses(second)[1]).backward()
        adam.step()
        points.append(x.detach().clone())
    return torch.stack(points)
