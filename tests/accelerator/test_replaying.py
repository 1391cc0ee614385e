"""On the device a fork's step, and what PUB solves, are recorded after the first ones, and launch little afterwards."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from equipoise.forks import Bargaining, EqualProjections, Fork, GradCraft, MetaBalanceFork, MinNorm, MultiBalance
from equipoise.replaying import CALLS_BEFORE, recording_of
from tests.accelerator.workload import batches, with_fork, with_optimizer
from tests.forks.every_fork import FORKS
from tests.optim.task_nets import KINDS

MOST_LAUNCHES = 10
OF_MANY_OPERATIONS: dict[str, Callable[[int], Fork]] = {
    "multibalance-raw": lambda count: MultiBalance(count, direction="raw"),
    "nash": Bargaining,
    "fairgrad": lambda count: Bargaining(count, exponent=2.0),
    "mgda": MinNorm,
    "imtl-g": EqualProjections,
    "gradcraft": GradCraft,
    "metabalance": MetaBalanceFork,
}
BY_KERNELS = {"multibalance", "multibalance-overlap", "multibalance-every-third", "multibalance-preferences"}


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """Fail where something warns that it could not be recorded."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@torch.no_grad()
def step(fork: Fork, gradients: list[Tensor]) -> None:
    fork.merge([gradients], *fork.weigh_step(fork.measure_step([gradients], None)))


def made(name: str, count: int, device: torch.device) -> tuple[Fork, list[Tensor]]:
    fork = OF_MANY_OPERATIONS[name](count).to(device)
    return fork, [torch.randn(4096, 256, device=device) for _ in range(count)]


@pytest.mark.parametrize("name", FORKS)
def test_a_fork_is_recorded_unless_its_step_is_a_kernel(name, cuda):
    training = with_fork(name, cuda)
    for batch in batches(cuda, 6):
        training.step(batch)
    assert (recording_of(training.model.fork) is None) == (name in BY_KERNELS)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("name", OF_MANY_OPERATIONS)
def test_the_time_of_a_recorded_step(name, count, cuda, record_property):
    fork, gradients = made(name, count, cuda)
    host, device = [], []
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(CALLS_BEFORE):
        step(fork, gradients)
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    step(fork, gradients)
    record_property("MiB kept", (torch.cuda.memory_reserved() - before) >> 20)
    for _ in range(20):
        torch.cuda.synchronize()
        begin.record()
        started = time.perf_counter()
        step(fork, gradients)
        host.append(time.perf_counter() - started)
        end.record()
        torch.cuda.synchronize()
        device.append(begin.elapsed_time(end))
    record_property("host, ms", round(1e3 * statistics.median(host), 3))
    record_property("device, ms", round(statistics.median(device), 3))


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("name", OF_MANY_OPERATIONS)
def test_a_recorded_step_is_few_launches(name, count, cuda, launches):
    fork, gradients = made(name, count, cuda)
    for _ in range(3):
        step(fork, gradients)
    _, launched = launches(lambda: step(fork, gradients))
    assert launched.count("cudaGraphLaunch") == 1
    assert len(launched) <= MOST_LAUNCHES


def test_what_pub_solves_is_recorded(cuda):
    training = with_optimizer("pub", KINDS["adam"], cuda)
    for batch in batches(cuda, 25):
        training.step(batch)
    assert recording_of(training.optimizer, 3) is not None


def test_forks_come_and_go_while_others_replay(cuda):
    """Memory of a fork that is gone is used again, and no other's recording lies in it."""
    ones = [torch.randn(64, 16, device=cuda) for _ in range(3)]
    kept = Bargaining(3).to(cuda)
    for _ in range(3):
        step(kept, ones)
    expected = kept.last_weights.clone()
    for turn in range(20):
        other = FORKS["nash" if turn % 2 else "mgda"]().to(cuda)
        for _ in range(3):
            step(other, [one * (turn + 1) for one in ones])
        step(kept, ones)
        assert kept.last_weights.equal(expected)
        del other
        gc.collect()
        torch.cuda.empty_cache()
    assert recording_of(kept) is not None
