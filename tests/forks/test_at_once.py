"""A step in one call is the step of the general way, to the bit and in all circumstances that a backward pass may meet.

Where the library in C is missing both are the general way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import compiled_autograd

from equipoise import Fork, MultiBalance, paused
from equipoise.forks.kernel_choice import LIBRARY

Losses = list[Tensor]


def plain(_fork: nn.Module, losses: Losses) -> None:
    sum(losses).backward()


def without_one(_fork: nn.Module, losses: Losses) -> None:
    sum(losses[::2]).backward()


def with_zeros(_fork: nn.Module, losses: Losses) -> None:
    (sum(losses[1:]) + losses[0] * 0).backward()


def overflowing(_fork: nn.Module, losses: Losses) -> None:
    (sum(losses[1:]) + losses[0] * torch.inf).backward()


def twice(_fork: nn.Module, losses: Losses) -> None:
    sum(losses).backward(retain_graph=True)
    sum(losses).backward()


def the_first_once_more(_fork: nn.Module, losses: Losses) -> None:
    sum(losses).backward(retain_graph=True)
    losses[0].backward()


def scaled(_fork: nn.Module, losses: Losses) -> None:
    torch.amp.GradScaler("cpu", init_scale=2.0**16).scale(sum(losses)).backward()


def recorded(_fork: nn.Module, losses: Losses) -> None:
    sum(losses).backward(create_graph=True)


def under_autocast(_fork: nn.Module, losses: Losses) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        sum(losses).backward()


def in_a_pause(fork: nn.Module, losses: Losses) -> None:
    with paused(fork):
        sum(losses).backward()


WAYS = [
    plain, without_one, with_zeros, overflowing, twice, the_first_once_more, scaled, under_autocast, in_a_pause,
    pytest.param(recorded, marks=pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")),
]  # fmt: skip
NEVER = [without_one, in_a_pause, recorded]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[bool]]:
    """Return what lets the step be taken at once or not, and a list of which steps were."""
    original = MultiBalance.step_at_once

    def choose(allowed: bool) -> list[bool]:
        steps: list[bool] = []

        def step(self: MultiBalance, gradients: list[Tensor], factor: Tensor | None) -> object:
            found = original(self, gradients, factor) if allowed else None
            steps.append(found is not None)
            return found

        monkeypatch.setattr(MultiBalance, "step_at_once", step)
        return steps

    return choose


def trained(backward: Callable[[nn.Module, Losses], None], dtype: torch.dtype) -> list[Tensor]:
    """Return what has flowed on in four steps, between which the fork is copied, and its state after them."""
    fork, found = MultiBalance(3, gamma=0.3), []
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        z = torch.randn(6, 5, generator=generator).to(dtype).requires_grad_()
        factors = [torch.randn(6, 5, generator=generator).to(dtype) * 4.0**task for task in range(3)]
        losses = [(z_task * factor).sum() for z_task, factor in zip(fork(z), factors, strict=True)]
        (plain if step == 1 else backward)(fork, losses)
        assert z.grad is not None
        found.append(z.grad.detach().clone())
        fork = copy.deepcopy(fork)
    return [*found, *fork.buffers(), fork.last_gram, fork.last_weights, fork.last_present]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward", WAYS)
def test_both_ways_are_the_same_to_the_bit(backward, dtype, taken) -> None:
    taken(False)
    expected = trained(backward, dtype)
    steps = taken(True)
    for own, other in zip(trained(backward, dtype), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0, equal_nan=True)
    assert sum(steps) == (0 if not LIBRARY.exists() else 1 if backward in NEVER else 4)


@pytest.mark.parametrize("count", [2, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_default_dtype_does_not_matter(count, dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        fork = MultiBalance(count)
        for _ in range(20):  # one that wrote beyond its memory would end the process
            z = torch.ones(4, 3, dtype=torch.float32, requires_grad=True)
            sum((z_task * 2.0**-task).sum() for task, z_task in enumerate(fork(z))).backward()
    finally:
        torch.set_default_dtype(before)
    lengths = fork.last_weights * fork.last_gram.diagonal().sqrt()
    torch.testing.assert_close(lengths, lengths[:1].expand(count), rtol=1e-4, atol=0)


@pytest.mark.parametrize("fork", [Fork, MultiBalance])
def test_a_backward_pass_that_alone_is_compiled_whole(fork) -> None:
    z = torch.ones(3, requires_grad=True)
    first, second = fork(2)(z)
    with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        (first.sum() + second.sum()).backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.full((3,), 2.0))
