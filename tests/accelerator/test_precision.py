"""Half precision: bfloat16 under autocast, and float16 with a ``GradScaler`` that meets overflows."""

from __future__ import annotations

import pytest
import torch

from tests.accelerator.workload import Training, batches, with_fork, with_optimizer
from tests.optim.task_nets import KINDS

FORKS = ["multibalance", "multibalance-averaged-gram", "nash", "mgda-equal", "graddrop"]
STEPS = 6


def scaled(training: Training, device: torch.device, scaler: torch.amp.GradScaler) -> list[float]:
    """Train in float16; return the scaler's factor after each step."""
    factors = []
    for batch in batches(device, STEPS):
        training.optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            losses = training.model(*batch)
        if training.model.fork is None:
            training.optimizer.backward([scaler.scale(loss) for loss in losses])
        else:
            scaler.scale(torch.stack(losses).sum()).backward()
        scaler.step(training.optimizer)
        scaler.update()
        factors.append(scaler.get_scale())
    return factors


def plain(training: Training, device: torch.device) -> Training:
    for batch in batches(device, STEPS):
        training.step(batch)
    return training


@pytest.mark.parametrize("fork", FORKS)
def test_a_fork_in_bfloat16_weighs_as_in_float32(fork, device):
    found, expected = with_fork(fork, device), plain(with_fork(fork, device), device)
    for batch in batches(device, STEPS):
        with torch.autocast(device.type, torch.bfloat16):
            losses = found.model(*batch)
        found.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        found.optimizer.step()
    known, own = expected.model.fork, found.model.fork
    assert own.last_gram.dtype == torch.float32
    torch.testing.assert_close(own.last_weights, known.last_weights, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("fork", FORKS)
def test_a_fork_under_a_grad_scaler_weighs_as_in_float32(fork, device):
    found, expected = with_fork(fork, device), plain(with_fork(fork, device), device)
    assert scaled(found, device, torch.amp.GradScaler(device.type, init_scale=2.0**10)) == [2.0**10] * STEPS
    known, own = expected.model.fork, found.model.fork
    torch.testing.assert_close(own.last_weights, known.last_weights, rtol=0.02, atol=0.01)
    torch.testing.assert_close(own.last_gram.diagonal(), known.last_gram.diagonal(), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("fork", FORKS)
def test_overflows_move_nothing_and_lower_the_factor(fork, device):
    training = with_fork(fork, device)
    before = {name: value.clone() for name, value in training.model.named_parameters()}
    factors = scaled(training, device, torch.amp.GradScaler(device.type, init_scale=2.0**120))
    assert factors == [2.0 ** (119 - step) for step in range(STEPS)]
    assert all(value.equal(before[name]) for name, value in training.model.named_parameters())
    state = [value for name, value in training.tensors().items() if name.startswith("state")]
    assert all(value.isfinite().all() for value in state)


@pytest.mark.parametrize("name", ["pub", "pub-ours", "pub-adatask", "adatask", "metabalance"])
def test_a_task_optimizer_under_a_grad_scaler_moves_as_in_float32(name, device):
    found, expected = (with_optimizer(name, KINDS["sgd"], device) for _ in range(2))
    plain(expected, device)
    scaled(found, device, torch.amp.GradScaler(device.type, init_scale=2.0**10))
    for own, known in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(own, known, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["pub", "pub-ours", "adatask"])
def test_overflows_do_not_move_a_task_optimizer(name, device):
    training = with_optimizer(name, KINDS["adam"], device)
    before = [value.clone() for value in training.model.parameters()]
    scaled(training, device, torch.amp.GradScaler(device.type, init_scale=2.0**120))
    assert all(map(torch.equal, before, training.model.parameters()))
