"""Checkpoints of a training run: written whole or not at all, by any number of ranks, and read without running code.

A checkpoint is a folder ``step-N``: the tensors in the format of ``torch.distributed.checkpoint``, everything else in
``state.json``. It gets its name when it is complete, so a process that is killed at any moment leaves the one before.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from equipoise.training.errors import SettingError
from equipoise.training.plain_state import decode, encode

__all__ = ["CheckpointError", "last_checkpoint", "load_checkpoint", "place_aside", "put_aside", "save_checkpoint"]

_FORMAT: Final = 1
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
    tensors |= {f"sharded/{name}": tensor for name, tensor in (sharded or {}).items()}
    target, unfinished = folder / f"step-{step}", folder / f".step-{step}.part"
    try:
        if _rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        _barrier()
        with _alone():
            _save_tensors(tensors, unfinished, step)
        if _rank() == 0:
            content = {"format": _FORMAT, "settings": dict(settings), "state": plain}
            _write(unfinished / "state.json", json.dumps(content))
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


def _save_tensors(tensors: dict[str, Tensor], folder: Path, step: int) -> None:
    try:
        save(tensors, storage_writer=FileSystemWriter(folder), no_dist=_ranks() == 1)
    except CheckpointException as error:  # the same on all ranks
        rank, (failure, _) = next(iter(error.failures.items()))
        reason: BaseException | None = failure
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__context__  # PyTorch's writer complains of what it could not finish, on top
        free = shutil.disk_usage(folder.parent).free / 1e6
        raise OSError(
            f"Rank {rank} could not write the checkpoint of step {step} ({reason or failure}); "
            f"{folder.parent} has {free:,.0f} MB free"
        ) from error


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
    if _rank() == 0 and last_checkpoint(folder) is not None:
        shutil.rmtree(place_aside(folder), ignore_errors=True)
        folder.rename(place_aside(folder))
    _barrier()


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
        content = json.loads((path / "state.json").read_text())
        found, plain = content["settings"], content["state"]
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, expected {_FORMAT}")
        tensors = _read_tensors(path, sharded or {})
        differing = [name for name in sorted({*settings, *found}) if settings.get(name) != found.get(name)]
        state: dict[str, Any] = decode(plain, tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError, EOFError,
            CheckpointException) as error:  # fmt: skip
        raise CheckpointError(
            f"Expected a checkpoint of equipoise at {path}, found a folder that cannot be read as one "
            f"({error}): delete it, so that the one before it is taken, or name another."
        ) from error
    if differing:
        details = "; ".join(f"{name}: {found.get(name)} there, {settings.get(name)} here" for name in differing)
        raise CheckpointError(
            f"The checkpoint at {path} belongs to a run with other settings ({details}): "
            "use the same settings, or another folder."
        )
    return state


class _Reader(FileSystemReader):
    """Reads tensors alone; DCP's own reader would run whatever code a file names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _MetadataUnpickler(file).load()
        strange = [
            key for key, entry in metadata.state_dict_metadata.items() if not isinstance(entry, TensorStorageMetadata)
        ]
        if strange:
            raise pickle.UnpicklingError(f"entries that are not tensors: {', '.join(map(str, strange[:3]))}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes that DCP's metadata is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = (
            (module == "torch.distributed.checkpoint.metadata" and not name.startswith("__") and "." not in name)
            or (module, name) == ("torch.distributed.checkpoint.filesystem", "_StorageInfo")
            or (module, name) == ("torch.serialization", "_get_layout")
            or (module, name) in {("torch", "Size"), ("torch", "device"), ("collections", "OrderedDict")}
            or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
            or (module in {"pathlib", "pathlib._local"} and name in {"PosixPath", "WindowsPath", "Path"})
        )
        if not known:
            raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which no checkpoint needs")
        found = super().find_class(module, name)
        if module == "torch.distributed.checkpoint.metadata" and not isinstance(found, type):
            raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which is no class")
        return found


def _read_tensors(path: Path, sharded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in _Reader(path).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not key.startswith("sharded/")
    }
    wanted = tensors | {f"sharded/{name}": tensor for name, tensor in sharded.items()}
    with _alone():
        load(wanted, storage_reader=_Reader(path), no_dist=_ranks() == 1)
    return tensors


def _complete(folder: Path) -> list[Path]:
    steps = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step-")))


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A renamed folder survives a loss of power once its parent has been written."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _alone() -> Iterator[None]:
    """Without DCP's warning that there is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if _ranks() > 1:
        dist.barrier()
