"""After its first steps no step waits for the device: CUDA's own check of synchronisation finds nothing.

The same is proven without a device, on one that is made up, by ``tests/forks/test_no_waiting.py`` and
``tests/optim/test_no_waiting.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.accelerator.workload import Training, batches, with_consistent_towers, with_fork, with_optimizer
from tests.forks.every_fork import FORKS
from tests.optim.task_nets import BUILDERS, KINDS

pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")

WARM_UP = 5  # allocates, creates handles of libraries, reads step counts once, and solves in PUB


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Raise where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check(training: Training, device: torch.device) -> None:
    """Make steps under the check, with and without all tasks."""
    data = batches(device, WARM_UP + 5)
    for step in range(WARM_UP):
        training.step(data[step], absent=(0,) if step == WARM_UP - 1 else ())
    with no_synchronisation():
        for step in range(WARM_UP, len(data)):
            training.step(data[step], absent=(1,) if step == WARM_UP + 1 else ())


def test_the_check_sees_a_look_at_a_value(cuda):
    number = torch.ones((), device=cuda)
    with no_synchronisation(), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()


@pytest.mark.parametrize("name", FORKS)
def test_a_fork(name, cuda):
    check(with_fork(name, cuda), cuda)


@pytest.mark.parametrize("name", ["multibalance", "multibalance-every-third", "graddrop"])
def test_stacked_copies(name, cuda):
    check(with_fork(name, cuda, stacked=True), cuda)


@pytest.mark.parametrize("kind", ["adam", "adam-fused", "sgd"])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_task_optimizer(name, kind, cuda):
    check(with_optimizer(name, KINDS[kind], cuda), cuda)


def test_consistent_towers(cuda):
    check(with_consistent_towers(cuda), cuda)
