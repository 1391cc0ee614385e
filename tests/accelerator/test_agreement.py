"""Weights, gradients and all state are those of the CPU to 1e-5 after twenty steps in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.accelerator.workload import Training, batches, with_consistent_towers, with_fork, with_optimizer
from tests.forks.every_fork import FORKS
from tests.optim.task_nets import BUILDERS, KINDS

STEPS = 20
CPU = torch.device("cpu")
OPTIMIZERS = {
    # With Adam's own eps of 1e-8 an element whose gradient is a rounding error would move by a whole rate.
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-4, weight_decay=0.01),
    "sgd": KINDS["sgd"],
}


def trained(training: Training, device: torch.device) -> dict[str, Tensor]:
    """Return all tensors after the steps; the last task is absent in some."""
    for step, batch in enumerate(batches(device, STEPS)):
        training.step(batch, absent=(2,) if step in {4, 11} else ())
    return training.tensors()


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare weights to 1e-5, and gradients and each kind of state to 1e-5 of the model's largest."""
    assert found.keys() == expected.keys()
    largest: dict[str, float] = {}
    for name, value in expected.items():
        kind = kind_of(name)
        largest[kind] = max(largest.get(kind, 0.0), float(value.double().abs().max()))
    for name, value in expected.items():
        unit = 1.0 if name.startswith("weight") else largest[kind_of(name)]
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-5 * unit, msg=lambda text, name=name: f"{name}: {text}"
        )


def kind_of(name: str) -> str:
    """Return "gradient", "weight", or the name of a state without that of its parameter."""
    kind, *words = name.split()
    return words[-1] if kind == "state" else kind


@pytest.mark.parametrize("name", FORKS)
def test_a_fork(name, device):
    assert_agree(trained(with_fork(name, device), device), trained(with_fork(name, CPU), CPU))


@pytest.mark.parametrize("name", ["multibalance", "multibalance-every-third", "graddrop"])
def test_stacked_copies(name, device):
    assert_agree(trained(with_fork(name, device, stacked=True), device), trained(with_fork(name, CPU), CPU))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_task_optimizer(name, kind, device):
    make = OPTIMIZERS[kind]
    assert_agree(trained(with_optimizer(name, make, device), device), trained(with_optimizer(name, make, CPU), CPU))


def test_consistent_towers(device):
    assert_agree(trained(with_consistent_towers(device), device), trained(with_consistent_towers(CPU), CPU))
