"""A step through a fork copies nothing from the host and reads nothing back, and weighs as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from equipoise.forks import Fork, Weighted
from tests.forks.every_fork import FORKS, TASKS
from tests.forks.fork_gradients import Towers, random
from tests.made_up_device import DEVICE, DeviceTensor, on_host, the_device


def steps(fork: Fork, waits: list[str] | None = None, *, stacked: bool = False) -> list[Tensor]:
    """Train for some steps, one of them without a task and one with a loss that is not finite."""
    model = Towers(fork, stacked=stacked)
    if waits is not None:
        model.to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(5):
        x = random(step, 8, 6) if waits is None else DeviceTensor(random(step, 8, 6))
        if waits is not None:
            waits.clear()
        optimizer.zero_grad()
        losses = model(x)
        if step == 3:
            losses[0] = losses[0] * torch.inf
        sum(losses[1:] if step == 2 else losses).backward()
        if step != 3:
            optimizer.step()
        # With gram_every the first step asks how many there have been.
        assert not waits or (fork.gram_every > 1 and step == 0 and len(waits) == 1)
    found = [*model.parameters(), *model.fork.buffers(), fork.last_gram, fork.last_weights, fork.last_present]
    return [on_host(tensor.detach()) for tensor in found]


@pytest.mark.parametrize("stacked", [False, True], ids=["separate", "stacked"])
@pytest.mark.parametrize("name", FORKS)
def test_a_step_waits_for_nothing_and_weighs_as_on_the_cpu(name: str, stacked: bool) -> None:
    expected = steps(FORKS[name]())
    with the_device() as waits:
        found = steps(FORKS[name](), waits, stacked=stacked)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_fork_with_a_function_of_the_present_tasks_waits_once() -> None:
    """The record itself works: this is the one fork whose docstring says that it waits."""
    with the_device() as waits:
        fork = Weighted(TASKS, lambda gram: 1 / gram.diagonal().sqrt()).to(DEVICE)
        gram = DeviceTensor(torch.eye(3))
        fork.weigh(gram, DeviceTensor(torch.tensor([True, False, True])))
        assert waits == ["aten.nonzero.default: a look at values"]
