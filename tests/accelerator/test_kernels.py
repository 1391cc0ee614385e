"""The forks' kernels run on the device, compute what float64 does, and are few."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from equipoise import MultiBalance
from equipoise.forks.balance_options import BalanceOptions
from equipoise.forks.kernel_choice import MOST_IN_REGISTERS, kernels_for

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
def test_gradients_of_other_lengths_take_other_forms_of_the_kernels(count, cuda, kernels):
    weights = torch.linspace(0.5, 2.0, count, device=cuda)
    for length in (4096, 1003, 16, 1, 1004, 4096):  # all begin at a multiple of 512 bytes
        rows = gradients(count, length, torch.float32, cuda)
        assert_gram(kernels.gram_matrix(rows, None), exact_gram(rows))
        expected = (torch.stack(rows).double() * weights.double().unsqueeze(1)).sum(0)
        torch.testing.assert_close(kernels.weighted_sum(rows, weights).double(), expected, rtol=1e-6, atol=1e-3)


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


@pytest.mark.parametrize(("count", "dtype"), CASES[:4])
def test_a_step_at_once_is_the_three_parts_each_time(count, dtype, cuda, kernels):
    rows = gradients(count, 300_000, dtype, cuda)  # several hundred programs, of which any may come last
    options = BalanceOptions(preferences=None, gamma=0.01, pull=0.1 / count, beta=0.1, unit=1 / count, cosine=True)

    def state() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        numbers = torch.ones(count, device=cuda)
        last = (
            torch.zeros(count, count, device=cuda),
            numbers.clone(),
            torch.zeros(count, dtype=torch.bool, device=cuda),
        )
        return torch.zeros(2, count, device=cuda), numbers / count, last

    averages, balance, last = state()
    weights, present = kernels.balance_step(
        kernels.gram_matrix(rows, None), averages, balance, last, known=None, options=options
    )
    expected = [kernels.weighted_sum(rows, weights), weights, averages, balance, *last]
    first = None
    for _ in range(300):
        averages, balance, last = state()
        sent, weights = kernels.balanced_sum(rows, None, averages, balance, last, options=options)
        found = [sent, weights, averages, balance, *last]
        first = found if first is None else first
        assert all(map(torch.equal, found, first))
        assert last[2].equal(present)
    for own, part in zip(found, expected, strict=True):
        unit = float(part.abs().max()) if part.is_floating_point() else 1.0
        torch.testing.assert_close(own, part, rtol=0, atol=unit * (1e-6 if own.dtype == torch.float32 else 1e-2))


@pytest.mark.usefixtures("kernels")
def test_the_first_step_builds_two_kernels(cuda, record_property):
    from equipoise.forks import launching  # needs Triton

    before = len(launching._built)
    fork = MultiBalance(6).to(cuda)  # no other test has six
    z = torch.randn(64, 8, device=cuda, requires_grad=True)
    started = time.perf_counter()
    torch.stack([copy.sum() for copy in fork(z)]).sum().backward()
    torch.cuda.synchronize()
    record_property("seconds", round(time.perf_counter() - started, 2))
    assert z.grad.isfinite().all()
    assert len(launching._built) == before + 2


STEPS = [(2, torch.float32), (8, torch.float32), (32, torch.bfloat16)]


def step_of(count: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """Return a step of a fork from its gradients to what flows on, after some that warm up."""
    fork = MultiBalance(count).to(device)
    ones = [torch.randn(4096, 256, dtype=dtype, device=device) for _ in range(count)]

    @torch.no_grad()
    def step() -> None:
        if fork.step_at_once(ones, None) is None:
            fork.merge([ones], *fork.weigh_step(fork.measure_step([ones], None)))

    for _ in range(3):
        step()
    return step


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("count", "dtype"), STEPS)
def test_the_time_on_the_host(count, dtype, cuda, record_property):
    step, host = step_of(count, dtype, cuda), []
    for _ in range(50):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        host.append(time.perf_counter() - started)
    record_property("host, ms", round(1e3 * statistics.median(host), 3))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("count", "dtype"), STEPS)
def test_a_step_of_the_fork_is_few_kernels(count, dtype, cuda, launches, record_property):
    kernels, _ = launches(step_of(count, dtype, cuda))
    record_property("kernels", kernels)
    assert kernels == 2 or count > MOST_IN_REGISTERS
    assert kernels <= MOST_KERNELS


def test_a_larger_step_after_a_smaller_one_on_the_same_stream(cuda, kernels):
    for length in (100, 3_000_000, 100):
        rows = gradients(4, length, torch.float32, cuda)
        fork = MultiBalance(4).to(cuda)
        sent, weights = fork.step_at_once(rows, None)
        expected = kernels.weighted_sum(rows, weights)
        assert sent.equal(expected)
        assert_gram(fork.last_gram, exact_gram(rows))
