"""The forks' kernels run on the device, compute what float64 does, and are few."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from equipoise import MultiBalance
from equipoise.forks.kernel_choice import kernels_for

MOST_KERNELS = 10


@pytest.fixture
def kernels(cuda):
    """Return the kernels, which must be there."""
    found = kernels_for([torch.ones(1, device=cuda)])
    assert found is not None, "Triton builds no kernel here: see the warning"
    return found


def gradients(count: int, length: int, dtype: torch.dtype, device: torch.device, *, offset: int = 0) -> list[Tensor]:
    """Return vectors that all begin so many numbers after a multiple of 512 bytes."""
    generator = torch.Generator().manual_seed(count + length)
    found = []
    for task in range(count):
        memory = torch.zeros(length + offset, dtype=dtype, device=device)[offset:]
        found.append(memory.copy_(torch.randn(length, generator=generator) * 3.0 ** (task % 5)))
    return found


def exact_gram(rows: list[Tensor]) -> Tensor:
    wide = torch.stack(rows).cpu().double()
    return wide @ wide.T


def assert_gram(found: Tensor, expected: Tensor) -> None:
    lengths = expected.diagonal().sqrt()
    cosines = expected / lengths / lengths[:, None]
    torch.testing.assert_close(found.cpu().double() / lengths / lengths[:, None], cosines, rtol=0, atol=3e-6)
    assert found.equal(found.T)


# Each case builds a kernel of its own, which takes a second.
CASES = [(2, torch.float32), (3, torch.float16), (8, torch.float32), (8, torch.bfloat16), (9, torch.float16),
         (17, torch.float32), (32, torch.bfloat16)]  # fmt: skip


@pytest.mark.parametrize(("count", "dtype"), CASES)
def test_the_gram_matrix(count, dtype, cuda, kernels):
    for length, offset in ((1003, 1), (300_000, 0)):
        rows = gradients(count, length, dtype, cuda, offset=offset)
        found = kernels.gram_matrix(rows, None)
        assert_gram(found, exact_gram(rows))
        assert found.equal(kernels.gram_matrix(rows, None))  # in the same order each time


@pytest.mark.parametrize("count", [2, 9])
def test_the_gram_matrix_of_scaled_gradients(count, cuda, kernels):
    rows = gradients(count, 5000, torch.float32, cuda)
    scale = torch.tensor(2.0**100, device=cuda)
    assert_gram(kernels.gram_matrix([row * scale for row in rows], scale), exact_gram(rows))


@pytest.mark.parametrize(("count", "dtype"), CASES)
def test_the_weighted_sum(count, dtype, cuda, kernels):
    weights = torch.linspace(0.5, 2.0, count, device=cuda)
    for length, offset in ((1003, 1), (300_000, 0)):
        rows = gradients(count, length, dtype, cuda, offset=offset)
        expected = (torch.stack(rows).double() * weights.double().unsqueeze(1)).sum(0)
        found = kernels.weighted_sum(rows, weights)
        torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.usefixtures("kernels")
def test_the_first_step_builds_three_kernels(cuda, record_property):
    fork = MultiBalance(6).to(cuda)  # no other test has six
    z = torch.randn(64, 8, device=cuda, requires_grad=True)
    started = time.perf_counter()
    torch.stack([copy.sum() for copy in fork(z)]).sum().backward()
    torch.cuda.synchronize()
    record_property("seconds", round(time.perf_counter() - started, 2))
    assert z.grad.isfinite().all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("count", "dtype"), [(2, torch.float32), (8, torch.float32), (32, torch.bfloat16)])
def test_a_step_of_the_fork_is_few_kernels(count, dtype, cuda, record_property):
    fork = MultiBalance(count).to(cuda)
    ones = [torch.randn(4096, 256, dtype=dtype, device=cuda) for _ in range(count)]
    weights = torch.ones(count, device=cuda)

    def step() -> None:
        with torch.no_grad():
            weights.copy_(fork.weigh_step(fork.measure_step([ones], None))[0])
            fork.merge([ones], weights, fork.last_present)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        step()
        torch.cuda.synchronize()
    launched = [event for event in recorded.events() if event.device_type.name == "CUDA"]
    host = []
    for _ in range(50):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        host.append(time.perf_counter() - started)
    record_property("kernels", len(launched) - 1)  # without the copy of the weights here
    record_property("host, ms", round(1e3 * statistics.median(host), 3))
    assert len(launched) - 1 <= MOST_KERNELS
