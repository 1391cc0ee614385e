"""The device under test: CUDA's if there is one, or the one that ``EQUIPOISE_ACCELERATOR`` names; else all skip.

``EQUIPOISE_ACCELERATOR=cpu`` runs what needs nothing of CUDA, to prove that these tests themselves work. They need
torch and pytest alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

VARIABLE = "EQUIPOISE_ACCELERATOR"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the device under test."""
    named = os.environ.get(VARIABLE)
    if named is None and not torch.cuda.is_available():
        pytest.skip(f"no CUDA device here; {VARIABLE}=cpu runs the tests that need none")
    return torch.device(named or "cuda")


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    """Return the device under test, which must be CUDA's."""
    if device.type != "cuda":
        pytest.skip(f"needs functions of torch.cuda, and the device is {device}")
    return device


Launches = Callable[[Callable[[], None]], tuple[int, list[str]]]


@pytest.fixture
def launches(cuda: torch.device) -> Launches:
    """Return what counts a call's kernels, and names what the host has launched for them."""

    def counted(call: Callable[[], None]) -> tuple[int, list[str]]:
        torch.cuda.synchronize(cuda)
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as recorded:
            call()
            torch.cuda.synchronize(cuda)
        kernels = [event for event in recorded.events() if event.device_type.name == "CUDA"]
        starts = "cudaLaunch", "cuLaunch", "cudaGraphLaunch"
        return len(kernels), [event.name for event in recorded.events() if event.name.startswith(starts)]

    return counted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count launches last: once a process has profiled, each of its launches takes longer."""
    items.sort(key=lambda item: "launches" in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    """Multiply float32 in full: TF32 keeps ten bits of each factor."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
