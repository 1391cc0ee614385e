"""Replays a function of small tensors as a CUDA graph: hundreds of small kernels, one launch.

The host takes longer to launch such a kernel than the device to run it. The first calls run as they are written, which
also prepares what the libraries below need. The last of them is watched for what no graph can hold; the next call is
recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CALLS_BEFORE", "recordable", "recording_of", "replayed"]

Function = Callable[..., tuple[Tensor, ...]]

CALLS_BEFORE = 2  # as written, before the first recording; twice as many each time that a recording is dropped

_aten = torch.ops.aten
_COPYING = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {_aten.index_put.default, _aten.index_put_.default}
# They look at values or at the error code of a solver.
_WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_WAITING = {
    _aten._linalg_check_errors.default, _aten._linalg_eigh.default, _aten._linalg_svd.default,
    _aten.linalg_eig.default, _aten.linalg_pinv.atol_rtol_tensor, _aten.multinomial.default, _aten.histc.default,
}  # fmt: skip


@dataclass
class _Recording:
    """A recorded call, whose replays read and write the same memory.

    Attributes:
        replay: repeats the call.
        inputs: receive the call's arguments.
        outputs: hold what it returns.
        reads: other tensors that it reads or writes, kept so that nothing else takes their place in memory.
        writes: those of them that it writes.
    """

    replay: Callable[[], None]
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    reads: list[Tensor]
    writes: list[Tensor]


@dataclass
class _Calls:
    """The calls of one function.

    Attributes:
        depends_on: all that they depend on but the inputs' values.
        as_written: calls with it that ran as written.
        before: how many of these come before a recording.
        recording: the recorded call; None if there is none.
        refused: no recording is to be made.
    """

    depends_on: object = None
    as_written: int = 0
    before: int = CALLS_BEFORE
    recording: _Recording | None = None
    refused: bool = False


_calls_of: WeakKeyDictionary[Any, dict[Hashable, _Calls]] = WeakKeyDictionary()  # owners are copied and pickled


def replayed(
    owner: object,
    function: Function,
    inputs: Sequence[Tensor],
    *,
    options: object = None,
    reads: Sequence[Tensor] = (),
    key: Hashable = None,
) -> tuple[Tensor, ...]:
    """Return ``function(*inputs)``, by a replay where that is the same and saves time.

    That is on a CUDA device, outside of ``torch.compile`` and of a CUDA graph that the caller captures. After a change
    of the options, of the inputs' form or of the other tensors' places in memory, a call is recorded anew. A function
    that was seen to wait for the device, or to copy between host and device, always runs as written.

    Args:
        owner: the object whose calls these are; it may be copied and pickled, and is not kept alive.
        function: works on tensors of one device alone, and keeps none of them; it does not run in each call.
        inputs: tensors of that device, at least one; each call copies them, so they should be small.
        options: all else on which the function's result depends; compared by value.
        reads: other tensors that it reads or writes.
        key: tells apart several functions of one owner.

    Returns:
        tensors in memory of their own.

    Raises:
        RuntimeError: the recording broke, after which PyTorch cannot go on.
    """
    if not recordable(*inputs):
        return function(*inputs)
    calls = _calls_of.setdefault(owner, {}).setdefault(key, _Calls())
    forms = [(tensor.device, tensor.dtype, tensor.shape) for tensor in inputs]
    places = [(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) for tensor in reads]
    depends_on = options, forms, places
    if depends_on != calls.depends_on:
        if calls.recording is not None:
            calls.before *= 2
        calls.depends_on, calls.as_written, calls.recording = depends_on, 0, None
    if calls.refused:
        return function(*inputs)
    if calls.recording is None and calls.as_written < calls.before:
        calls.as_written += 1
        if calls.as_written < calls.before:  # what changes in each step is never watched, which takes time
            return function(*inputs)
        with _Watch() as watch:
            found = function(*inputs)
        calls.refused = watch.waited
        return found
    if calls.recording is None:
        calls.refused = True  # unless it succeeds
        calls.recording = _recorded_or_none(owner, function, inputs, reads)
        if calls.recording is None:
            return function(*inputs)
        calls.refused = False
    for place, tensor in zip(calls.recording.inputs, inputs, strict=True):
        place.copy_(tensor)
    calls.recording.replay()
    torch.autograd.graph.increment_version(calls.recording.writes)  # as the operations themselves do
    return tuple([output.clone() for output in calls.recording.outputs])  # the next replay overwrites them


def recordable(*inputs: Tensor) -> bool:
    """Return whether a function of these tensors may be replayed, as :func:`replayed` says."""
    if torch.compiler.is_compiling() or not all(_on_cuda(tensor) and type(tensor) is Tensor for tensor in inputs):
        return False
    return not torch.cuda.is_current_stream_capturing()


def recording_of(owner: object, key: Hashable = None) -> object | None:
    """Return the recorded call of this owner and key; None if there is none."""
    calls = _calls_of.get(owner, {}).get(key)
    return None if calls is None else calls.recording


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.version.cuda is not None


class _BrokenRecordingError(RuntimeError):
    """A recording broke, and with it PyTorch's memory on the device."""


class _Watch(TorchDispatchMode):
    """Sees whether the host waits for an operation, or one copies between host and device: no graph can hold those."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The solvers of MAGMA wait inside.
        self.waited = str(torch.backends.cuda.preferred_linalg_library()).endswith("Magma")

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let what a function has compiled stay so; it is not watched."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at it."""
        found = func(*args, **(kwargs or {}))
        if func in _WAITING or _WAITING_TAGS.intersection(func.tags):
            self.waited = True
        elif func in _INDEXING:
            self.waited |= any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
        elif func in _COPYING:
            self.waited |= len({leaf.device for leaf in tree_leaves((args, found)) if isinstance(leaf, Tensor)}) > 1
        return found


def _recorded_or_none(
    owner: object, function: Function, inputs: Sequence[Tensor], reads: Sequence[Tensor]
) -> _Recording | None:
    try:
        return _recorded(owner, function, inputs, reads)
    except _BrokenRecordingError:
        raise
    except RuntimeError as error:  # too little memory, or a copy that PyTorch refuses before it is recorded
        warnings.warn(
            f"{type(owner).__name__} could not record its step in a CUDA graph ({error}), and goes on without one. "
            "Results are the same; small models train more slowly.",
            stacklevel=2,
        )
        return None


def _recorded(owner: object, function: Function, inputs: Sequence[Tensor], reads: Sequence[Tensor]) -> _Recording:
    """Record the call; nothing runs, and no state changes."""
    own = [torch.empty_like(tensor) for tensor in inputs]
    versions = list(map(_version, reads))
    graph = torch.cuda.CUDAGraph()
    # A stream of its own, as recording needs; other threads go on with theirs.
    with torch.cuda.stream(torch.cuda.Stream(own[0].device)):  # type: ignore[no-untyped-call]
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            outputs = function(*own)
        finally:
            _end(graph, owner)
    writes = [tensor for tensor, before in zip(reads, versions, strict=True) if _version(tensor) != before]
    return _Recording(graph.replay, own, outputs, list(reads), writes)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _end(graph: torch.cuda.CUDAGraph, owner: object) -> None:
    try:
        graph.capture_end()
    except RuntimeError as error:
        raise _BrokenRecordingError(
            f"{type(owner).__name__} could not record its step in a CUDA graph: something in it waits for the device. "
            "PyTorch cannot go on after that. Set `replayable = False` in its class, and start again."
        ) from error
