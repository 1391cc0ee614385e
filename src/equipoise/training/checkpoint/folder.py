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
from equipoise.training.checkpoint.tensor_files import empty_tensors, read_tensors, write_tensors, write_text

__all__ = [
    "CheckpointError",
    "has_settings",
    "last_checkpoint",
    "load_checkpoint",
    "refuse",
    "save_checkpoint",
    "set_aside",
    "set_aside_folder",
]

_FORMAT: Final = 2
_SHARDED: Final = "sharded/"
_KEPT: Final = 2  # the last one, and one before

_UNREADABLE: Final = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError,
    CheckpointException,
)  # fmt: skip
"""All that reading a file ends in that holds something else than a checkpoint."""


class CheckpointError(SettingError):
    """A checkpoint cannot be resumed from: the message says what differs and what to do."""


def save_checkpoint(
    folder: Path,
    step: int,
    settings: Mapping[str, str],
    state: Mapping[str, Any],
    sharded: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``folder/step-N``. Earlier checkpoints stay until it is complete; then all but the last of them go.

    All ranks take part: a tensor that several ranks hold is written once, and of a sharded tensor every rank writes its
    part.

    Args:
        state: nested dicts, lists and tuples of tensors, strings, numbers, booleans and None; the same on all ranks.
        sharded: DTensors or ShardedTensors by name, of which a rank holds some parts or none.

    Raises:
        TypeError: ``state`` holds something else.
        OSError: the disk is full or cannot be written to; earlier checkpoints are as they were.
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
        files = _write_tensors(tensors, unfinished, step)
        if _rank() == 0:
            content = json.dumps({"format": _FORMAT, "settings": dict(settings), "files": files, "state": plain})
            write_text(unfinished / "state.json", json.dumps({"crc": zlib.crc32(content.encode()), "content": content}))
            _sync(unfinished)
            unfinished.rename(target)
            _sync(folder)
            for old in _complete_checkpoints(folder)[:-_KEPT]:
                shutil.rmtree(old)
    except BaseException:
        if _rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _barrier()


def _write_tensors(tensors: dict[str, Tensor], folder: Path, step: int) -> dict[str, list[int]]:
    try:
        return write_tensors(folder, tensors)
    except CheckpointException as error:  # the same on all ranks
        rank, (failure, _) = next(iter(error.failures.items()))
        reason = _disk_error(failure)
        free = f"; {folder.parent} has {shutil.disk_usage(folder.parent).free / 1e6:,.0f} MB free"
        subject = f"Rank {rank} could not" if _ranks() > 1 else "Could not"
        raise OSError(
            f"{subject} write the checkpoint of step {step} ({reason}){free if isinstance(reason, OSError) else ''}"
        ) from error


def _disk_error(error: BaseException) -> BaseException:
    """Return the OSError behind an error of PyTorch's writer, or the error itself if there is none."""
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, OSError):
        reason = reason.__context__
    return reason or error


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint in a folder, or None."""
    found = _complete_checkpoints(folder)
    return found[-1] if found else None


def set_aside_folder(folder: Path) -> Path:
    """Return the folder that :func:`set_aside` moves the checkpoints of ``folder`` to."""
    return folder.with_name(f"{folder.name}.before")


def set_aside(folder: Path) -> None:
    """Move the checkpoints of an earlier training away, before a new one starts.

    Those that the earlier training had itself set aside are deleted.
    """
    _barrier()  # other ranks may still be looking at them
    if _rank() == 0 and (found := _complete_checkpoints(folder)):
        aside = set_aside_folder(folder)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for path in reversed(found):  # the last one is the one that matters, should this be killed
            path.rename(aside / path.name)
    _barrier()


def has_settings(folder: Path, settings: Mapping[str, str]) -> bool:
    """Return whether the last checkpoint in a folder was saved under these settings, or cannot be read."""
    path = last_checkpoint(folder)
    if path is None:
        return False
    try:
        return not _differing_settings(_read_content(path / "state.json")["settings"], settings)
    except _UNREADABLE:
        return True  # load_checkpoint reports the fault


def load_checkpoint(
    folder: Path, settings: Mapping[str, str], sharded: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Return the state of the last checkpoint, which must have been saved under the same settings.

    The number of ranks need not be that of the ranks that saved it.

    Args:
        sharded: tensors by the names they were saved under, whatever their sharding is now; every rank loads its parts
            into them.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it was saved under other settings.
    """
    path = last_checkpoint(folder)
    if path is None:
        raise CheckpointError(f"Expected a checkpoint at {folder}, found none: train without resume first.")
    try:
        content = _read_content(path / "state.json")
        differing = _differing_settings(content["settings"], settings)
        if not differing:
            parts = {f"{_SHARDED}{name}": tensor for name, tensor in (sharded or {}).items()}
            wanted = empty_tensors(path, content["files"], leave_out=_SHARDED) | parts
            read_tensors(path, wanted)
            state: dict[str, Any] = decode(content["state"], wanted)
    except _UNREADABLE as error:
        raise refuse(folder, f"it cannot be read ({_first_line(error)})") from error
    if differing:
        raise CheckpointError(
            f"The checkpoint at {path} belongs to a run with other settings ({differing}): use the same settings, or "
            "another folder."
        )
    return state


def refuse(folder: Path, reason: str) -> CheckpointError:
    """Return the error for a last checkpoint that cannot be resumed from: its path, the reason, and what to do."""
    *earlier, path = _complete_checkpoints(folder)
    instead = f"move it away to resume from {earlier[-1].name}, or " if earlier else ""
    return CheckpointError(
        f"Expected a checkpoint of this version of equipoise at {path}, but {reason}: "
        f"{instead}begin anew without resume."
    )


def _read_content(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    if zlib.crc32(found["content"].encode()) != found["crc"]:
        raise ValueError(f"{path.name} has been changed")
    content: dict[str, Any] = json.loads(found["content"])
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']}, expected {_FORMAT}")
    return content


def _differing_settings(found: Mapping[str, str], settings: Mapping[str, str]) -> str:
    names = [name for name in sorted({*settings, *found}) if settings.get(name) != found.get(name)]
    return "; ".join(f"{name}: {found.get(name)} there, {settings.get(name)} here" for name in names)


def _first_line(error: BaseException) -> str:
    """Return the reason in one line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"it lacks {Path(error.filename).name}"
    if isinstance(error, KeyError):
        return f"something in it lacks {error}"
    text = f"{error}".splitlines()[0] if f"{error}" else ""
    return f"{type(error).__name__}: {text}" if isinstance(error, MemoryError) or not text else text


def _complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in the order of their steps."""
    steps = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step-")))


def _sync(folder: Path) -> None:
    """Write a folder's entries to the disk, so that a renamed entry survives a loss of power."""
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
