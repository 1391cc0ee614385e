"""Checkpoints of a training run: written whole or not at all, by any number of ranks, and read without running code.

A checkpoint is a folder ``step-N``: the tensors in the format of ``torch.distributed.checkpoint``, everything else in
``state.json``. It gets its name when it is complete, so a process that is killed at any moment leaves the one before.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from equipoise.errors import SettingError
from equipoise.training.checkpoint.plain_state import decode, encode
from equipoise.training.checkpoint.tensor_files import read_tensors, whole_tensors, write_tensors, write_text

__all__ = [
    "CheckpointError",
    "belongs",
    "last_checkpoint",
    "load_checkpoint",
    "place_aside",
    "put_aside",
    "save_checkpoint",
]

_FORMAT: Final = 1
_SHARDED: Final = "sharded/"
_KEPT: Final = 2  # the last one, and one before


class CheckpointError(SettingError):
    """A checkpoint cannot be resumed from: the message says what differs and what to do."""


def save_checkpoint(
    folder: Path,
    step: int,
    settings: Mapping[str, str],
    state: Mapping[str, Any],
    sharded: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``folder/step-N``; those before stay until it is complete, and the last of them after that.

    All ranks take part: a tensor that several hold is written once, and of a sharded one every rank writes its part.

    Args:
        state: nested dicts, lists and tuples of tensors, strings, numbers, booleans and None; the same on all ranks.
        sharded: DTensors or ShardedTensors by name, of which every rank holds its parts, or none.

    Raises:
        TypeError: ``state`` holds something else.
        OSError: the disk is full, or cannot be written to; what was complete before is as it was.
    """
    tensors: dict[str, Tensor] = {}
    plain = encode(state, tensors)
    tensors |= {f"{_SHARDED}{name}": tensor for name, tensor in (sharded or {}).items()}
    target, unfinished = folder / f"step-{step}", folder / f".step-{step}.part"
    try:
        if _rank() == 0:
            for left in folder.glob(".step-*.part"):  # by a process that was killed while it wrote
                shutil.rmtree(left)
            unfinished.mkdir(parents=True)
        _barrier()
        files = _written(tensors, unfinished, step)
        if _rank() == 0:
            content = json.dumps({"format": _FORMAT, "settings": dict(settings), "files": files, "state": plain})
            write_text(unfinished / "state.json", json.dumps({"crc": zlib.crc32(content.encode()), "content": content}))
            _sync(unfinished)
            unfinished.rename(target)
            _sync(folder)
            for old in _complete(folder)[:-_KEPT]:
                shutil.rmtree(old)
    except BaseException:
        if _rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _barrier()


def _written(tensors: dict[str, Tensor], folder: Path, step: int) -> dict[str, list[int]]:
    try:
        return write_tensors(folder, tensors)
    except CheckpointException as error:  # the same on all ranks
        rank, (failure, _) = next(iter(error.failures.items()))
        reason = _innermost(failure)
        free = f"; {folder.parent} has {shutil.disk_usage(folder.parent).free / 1e6:,.0f} MB free"
        who = f"Rank {rank} could not" if _ranks() > 1 else "Could not"
        raise OSError(
            f"{who} write the checkpoint of step {step} ({reason}){free if isinstance(reason, OSError) else ''}"
        ) from error


def _innermost(error: BaseException) -> BaseException:
    """What was wrong with the disk, if that is behind it: PyTorch's writer complains of what it left undone, too."""
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, OSError):
        reason = reason.__context__
    return reason or error


def last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint in a folder, if there is one."""
    found = _complete(folder)
    return found[-1] if found else None


def place_aside(folder: Path) -> Path:
    """Where :func:`put_aside` puts the checkpoints of a folder."""
    return folder.with_name(f"{folder.name}.before")


def put_aside(folder: Path) -> None:
    """Make room for a training that starts anew: what an earlier one has left could be taken for its own.

    The checkpoints of one earlier training are kept, those that it had put aside itself are not.
    """
    _barrier()  # others may still be looking at them
    if _rank() == 0 and last_checkpoint(folder) is not None:
        shutil.rmtree(place_aside(folder), ignore_errors=True)
        folder.rename(place_aside(folder))
    _barrier()


def belongs(folder: Path, settings: Mapping[str, str]) -> bool:
    """Whether the last checkpoint in a folder was saved under these settings, or cannot be read."""
    path = last_checkpoint(folder)
    if path is None:
        return False
    try:
        return not _differing(_checked_content(path / "state.json")["settings"], settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True  # to be complained of when it is loaded


def load_checkpoint(
    folder: Path, settings: Mapping[str, str], sharded: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """The state of the last checkpoint, which must have been saved under the same settings, by however many ranks.

    Args:
        sharded: tensors by the names they were saved under, whatever their sharding is now; every rank loads its
            parts into them.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it was made with other settings.
    """
    path = last_checkpoint(folder)
    if path is None:
        raise CheckpointError(f"Expected a checkpoint at {folder}, found none: train without resume first.")
    try:
        content = _checked_content(path / "state.json")
        differing = _differing(content["settings"], settings)
        if not differing:
            parts = {f"{_SHARDED}{name}": tensor for name, tensor in (sharded or {}).items()}
            wanted = whole_tensors(path, content["files"], leave_out=_SHARDED) | parts
            read_tensors(path, wanted)
            state: dict[str, Any] = decode(content["state"], wanted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError,
            CheckpointException) as error:  # fmt: skip
        earlier = _complete(folder)[:-1]
        remedy = f"move it away, so that {earlier[-1].name} is taken" if earlier else "there is none before it"
        raise CheckpointError(
            f"Expected a checkpoint of equipoise at {path}, found a folder that cannot be read as one "
            f"({_reason(error)}): {remedy}."
        ) from error
    if differing:
        raise CheckpointError(
            f"The checkpoint at {path} belongs to a run with other settings ({differing}): use the same settings, or "
            "another folder."
        )
    return state


def _checked_content(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    if zlib.crc32(found["content"].encode()) != found["crc"]:
        raise ValueError(f"{path.name} has been changed")
    content: dict[str, Any] = json.loads(found["content"])
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']}, expected {_FORMAT}")
    return content


def _differing(found: Mapping[str, str], settings: Mapping[str, str]) -> str:
    names = [name for name in sorted({*settings, *found}) if settings.get(name) != found.get(name)]
    return "; ".join(f"{name}: {found.get(name)} there, {settings.get(name)} here" for name in names)


def _reason(error: BaseException) -> str:
    """One line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"it lacks {Path(error.filename).name}"
    if isinstance(error, KeyError):
        return f"something in it lacks {error}"
    text = f"{error}".splitlines()[0] if f"{error}" else ""
    return f"{type(error).__name__}: {text}" if isinstance(error, MemoryError) or not text else text


def _complete(folder: Path) -> list[Path]:
    steps = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step-")))


def _sync(folder: Path) -> None:
    """A renamed folder survives a loss of power once its parent has been written."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if _ranks() > 1:
        dist.barrier()
