"""An iteration that ends early gives what all of its steps would have given, to the bit."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from equipoise.solvers import bargaining_weights
from equipoise.solvers.iterating import iterated


def all_steps(step, start: Tensor, times: int) -> Tensor:
    for _ in range(times):
        start = step(start)
    return start


def bits(tensor: Tensor) -> list[int]:
    return tensor.view(torch.int64).flatten().tolist()


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("times", range(16))
@pytest.mark.parametrize(
    ("step", "start"),
    [
        (lambda s: s, numbers(3.0)),
        (lambda s: s / 2, numbers(3.0)),  # never repeats
        (lambda s: (s + 1) % 3, numbers(1.0)),
        (lambda s: torch.where(s < 5, s + 1, s - 2), numbers(1.0)),  # four steps, then three in turn
        (lambda s: s.flip(0), numbers(1.0, 2.0)),
        (lambda s: s.flip(0), torch.arange(6.0, dtype=torch.float64).view(2, 3)),
        (lambda s: -s, numbers(0.0)),
        (lambda s: s * torch.nan, numbers(1.0)),
    ],
)
def test_so_many_steps(step, start, times):
    assert bits(iterated(step, start, times)) == bits(all_steps(step, start, times))


def test_it_ends_where_it_would_repeat_itself():
    steps = []
    iterated(lambda s: steps.append(s) or s.flip(0), numbers(1.0, 2.0), 1000)
    assert len(steps) == 2


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_what_is_traced_or_transformed_takes_all_steps(count, exponent):
    def solve(gram: Tensor) -> Tensor:
        return bargaining_weights(gram, exponent=exponent)

    torch.manual_seed(0)
    vectors = torch.randn(4, count, count + 2, dtype=torch.float64)
    grams = vectors @ vectors.mT
    expected = torch.stack([solve(gram) for gram in grams])
    traced = make_fx(solve)(torch.eye(count, dtype=torch.float64))  # converged at once
    torch.testing.assert_close(torch.stack([traced(gram) for gram in grams]), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.func.vmap(solve)(grams), expected, rtol=1e-12, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and the number of tasks becomes a constant
        scripted = torch.jit.trace(solve, torch.eye(count, dtype=torch.float64))
    torch.testing.assert_close(torch.stack([scripted(gram) for gram in grams]), expected, rtol=1e-12, atol=0)


def test_a_gradient_goes_through_all_steps():
    factor = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    iterated(lambda s: 1 + factor * s, numbers(2.0), 5).sum().backward()  # 2 repeats itself
    expected = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    all_steps(lambda s: 1 + expected * s, numbers(2.0), 5).sum().backward()
    assert factor.grad == expected.grad
