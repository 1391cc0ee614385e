"""Kernels are taken where a device can build them, shown as far as a CPU can; ``tests/accelerator`` has the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from equipoise import forks
from equipoise.forks import kernel_choice
from equipoise.forks.kernel_choice import kernels_for

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def made_up_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Let the process believe that it has a device; the fixture's values can be changed."""
    device = SimpleNamespace(capability=(9, 0), name="Made-up")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: device.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device.name)
    kernel_choice._kernels_on.cache_clear()
    yield device
    kernel_choice._kernels_on.cache_clear()


def test_tensors_without_memory_of_their_own_have_none():
    resized = torch.ones(3)
    resized.untyped_storage().resize_(0)
    zeros = torch._efficientzerotensor(3)
    assert not any(kernel_choice._plain([tensor]) for tensor in (resized, zeros, torch.ones(2, 2).to_sparse()))
    assert kernel_choice._plain([torch.ones(3), torch.empty(0)])


def test_other_devices_have_none():
    assert kernels_for([torch.ones(2, device="meta")]) is None


def test_an_old_device_has_none(made_up_device):
    made_up_device.capability = (7, 5)
    assert kernel_choice._kernels_on(DEVICE) is None


@pytest.mark.usefixtures("made_up_device")
def test_a_build_of_pytorch_for_other_devices_has_none(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert kernel_choice._kernels_on(DEVICE) is None


@pytest.mark.usefixtures("made_up_device")
def test_a_build_of_pytorch_without_triton_has_none(monkeypatch):
    monkeypatch.setattr(kernel_choice, "find_spec", lambda _: None)
    assert kernel_choice._kernels_on(DEVICE) is None


@pytest.mark.usefixtures("made_up_device")
@pytest.mark.parametrize("kind", [RuntimeError, ModuleNotFoundError, TypeError])
@pytest.mark.parametrize("launches", [0, 1])
def test_kernels_that_cannot_be_built_or_started_are_left_with_one_warning_that_says_why(kind, launches, monkeypatch):
    kernels = pytest.importorskip("equipoise.forks.kernels", reason="needs Triton", exc_type=ImportError)

    left = iter(range(launches))

    def fails(*_: object) -> None:
        if next(left, None) is None:
            raise kind("Failed to find C compiler")

    monkeypatch.setattr(kernels, "weighted_sum", fails)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    with pytest.warns(
        UserWarning, match=r"on Made-up: Triton cannot build or start.*Failed to find C compiler.*apt install gcc"
    ):
        assert kernel_choice._kernels_on(DEVICE) is None
    assert kernel_choice._kernels_on(DEVICE) is None  # no second warning, which would be an error here


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let the package have its library for the CPU elsewhere."""
    path = tmp_path / "libcpu_kernels.so"
    monkeypatch.setattr(kernel_choice, "LIBRARY", path)
    monkeypatch.delitem(sys.modules, "equipoise.forks.cpu_kernels", raising=False)
    monkeypatch.delattr(forks, "cpu_kernels", raising=False)
    kernel_choice._cpu_kernels.cache_clear()
    yield path
    kernel_choice._cpu_kernels.cache_clear()


@pytest.mark.usefixtures("library")
def test_a_package_without_the_library_for_the_cpu_takes_the_plain_form():
    assert kernels_for([torch.ones(2)]) is None


def test_a_library_for_another_machine_is_left_with_one_warning_that_says_what_to_do(library):
    library.write_bytes(b"\x7fELF of elsewhere")
    with pytest.warns(UserWarning, match=r"libcpu_kernels.so cannot be used here.*Install equipoise anew"):
        assert kernels_for([torch.ones(2)]) is None
    assert kernels_for([torch.ones(2)]) is None  # no second warning, which would be an error here
