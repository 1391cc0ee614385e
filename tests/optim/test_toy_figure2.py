"""The acceptance example of PUB (figure 2 of its paper): from all five starts to the middle of the Pareto set."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from equipoise.optim import PUB

_SPEC = importlib.util.spec_from_file_location(
    "toy_figure2", Path(__file__).resolve().parents[2] / "examples" / "toy_figure2.py"
)
toy = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toy)


class Losses(torch.autograd.Function):
    """The example's losses with gradients by hand: 40,000 steps are to be quick."""

    @staticmethod
    def forward(ctx, x):
        x1, x2 = x.tolist()
        t, half = math.tanh(-x2), math.tanh(x2 / 2)
        slope = (1 - half * half) / 2
        upper, lower = (half, slope) if half >= 0 else (0.0, 0.0), (-half, -slope) if half <= 0 else (0.0, 0.0)
        values, rows = [], []
        for inner, sign, near in ((0.5 * (-x1 - 7) - t, 1, -7), (0.5 * (-x1 + 3) + t + 2, -1, 7)):
            size = abs(inner)
            inverse = math.copysign(1 / size, inner) if size >= 5e-6 else 0.0
            f, f1, f2 = math.log(max(size, 5e-6)) + 6, -0.5 * inverse, sign * (1 - t * t) * inverse
            h = ((-x1 - near) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
            h1, h2 = 2 * (x1 + near) / 10, 0.02 * (x2 + 8)
            values.append(upper[0] * f + lower[0] * h)
            rows.append([upper[0] * f1 + lower[0] * h1, upper[0] * f2 + lower[0] * h2 + upper[1] * f + lower[1] * h])
        ctx.jacobian = x.new_tensor(rows)
        return x.new_tensor(values)

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent @ ctx.jacobian


def test_losses_and_gradients_by_hand_are_the_examples():
    generator = torch.Generator().manual_seed(0)
    for point in [*(torch.rand(50, 2, generator=generator, dtype=torch.float64) * 20 - 10), torch.zeros(2).double()]:
        x = point.requires_grad_()
        torch.testing.assert_close(Losses.apply(x), toy.losses(x))
        for task in range(2):
            ours = torch.autograd.grad(Losses.apply(x)[task], x)[0]
            torch.testing.assert_close(ours, torch.autograd.grad(toy.losses(x)[task], x)[0])


@pytest.mark.parametrize("start", toy.STARTS, ids=str)
def test_pub_reaches_the_middle_of_the_pareto_set(start):
    x = torch.nn.Parameter(torch.tensor(start))
    adam = torch.optim.Adam([x], lr=toy.LEARNING_RATE)
    optimizer = PUB(adam, shared=[x], update_every=1, form="literal")
    for _ in range(toy.STEPS):
        optimizer.zero_grad()
        optimizer.backward(Losses.apply(x))
        optimizer.step()
    assert math.dist(toy.losses(x).tolist(), toy.BALANCED) < 1.5
