"""A launch takes the form of the kernel that one with the same key has built, and no other.

A kernel that is made up stands for Triton's; ``tests/accelerator`` launches real ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

launching = pytest.importorskip("equipoise.forks.launching", reason="needs Triton", exc_type=ImportError)

STREAM = 7


class Built:
    """The form of a kernel, which notes what it is started with."""

    function, packed_metadata = "function", "packed"

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []

    def run(self, *arguments: Any) -> None:
        self.started.append(arguments)

    def launch_metadata(self, grid: tuple[int, int, int], stream: int, *arguments: Any) -> tuple[Any, ...]:
        return grid, stream, arguments


class Kernel:
    """A function under ``triton.jit``, which builds a form in every launch that Triton makes."""

    def __init__(self, form: type[Built] | None = Built) -> None:
        self.form = form
        self.built: list[Built | None] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launched(*_: Any, num_warps: int) -> Built | None:
            assert num_warps == 4
            self.built.append(None if self.form is None else self.form())
            return self.built[-1]

        return launched


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "CompiledKernel", Built)
    monkeypatch.setattr(launching, "_built", {})
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: STREAM, raising=False)


def test_a_form_is_built_once_for_each_kernel_and_key():
    first, second = Kernel(), Kernel()
    for kernel, key in [(first, "a"), (first, "a"), (first, "b"), (second, "a"), (first, "a")]:
        launching.launch(kernel, 3, 4, key, "x", 1)
    assert [len(kernel.built) for kernel in (first, second)] == [2, 1]
    assert first.built[0].started == [(3, 1, 1, STREAM, "function", "packed", None, None, None, "x", 1)] * 2
    assert first.built[1].started == []


def test_without_a_key_triton_looks_in_each_launch():
    kernel = Kernel()
    for _ in range(3):
        launching.launch(kernel, 3, 4, None, "x")
    assert len(kernel.built) == 3
    assert not launching._built


def test_the_interpreter_builds_no_form_to_keep():
    kernel = Kernel(form=None)
    for _ in range(2):
        launching.launch(kernel, 3, 4, "a", "x")
    assert kernel.built == [None, None]


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_a_profiler_sees_each_launch(name, monkeypatch: pytest.MonkeyPatch):
    runtime, kernel = launching.knobs.runtime, Kernel()
    monkeypatch.setattr(getattr(runtime, name), "calls", [print])
    for _ in range(2):
        launching.launch(kernel, 3, 4, "a", "x")
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    metadata = ((3, 1, 1), STREAM, ("x",))
    assert kernel.built[0].started == [(3, 1, 1, STREAM, "function", "packed", metadata, *hooks, "x")]
