"""The tensors of a checkpoint, in the files of ``torch.distributed.checkpoint`` (DCP), read without running code.

DCP's own index of the files is a pickle, which can run any code. So an index in JSON is written beside it and is the
only one that is read. PyTorch loads the tensors themselves with ``weights_only``.
"""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult

__all__ = ["DamagedError", "empty_tensors", "read_tensors", "write_tensors", "write_text"]

_INDEX: Final = "index.json"
_DTYPES: Final = {str(found).removeprefix("torch."): found for found in vars(torch).values()
                  if isinstance(found, torch.dtype)}  # fmt: skip


class DamagedError(ValueError):
    """A file is missing, has changed or is not one of ours: the message says which."""


def write_tensors(folder: Path, tensors: dict[str, Tensor], /) -> dict[str, list[int]]:
    """Write tensors by name into an existing folder, and return size and checksum of every file by name.

    All ranks take part: a tensor that several ranks hold is written once, and of a sharded tensor every rank writes its
    part.

    Raises:
        CheckpointException: a rank could not write; raised on all ranks.
    """
    with _without_single_process_warning():
        save(tensors, storage_writer=_Writer(folder))
    own = {path.name: _size_and_checksum(path) for path in sorted(folder.glob(f"__{_rank()}_*.distcp"))}
    if _rank() == 0:
        own[_INDEX] = _size_and_checksum(folder / _INDEX)
    found = _gather_objects(own)
    return {name: numbers for of_rank in found for name, numbers in of_rank.items()}


def empty_tensors(folder: Path, files: Mapping[str, list[int]], /, *, leave_out: str) -> dict[str, Tensor]:
    """Check every file, and return uninitialized tensors for :func:`read_tensors` to fill, by name.

    Tensors whose names begin with ``leave_out`` are left out. Each rank checks some of the files.

    Raises:
        DamagedError: a file is missing or is not the one that was written.
    """
    names = sorted(files)
    if unknown := sorted({_INDEX, *(path.name for path in folder.glob("*.distcp"))} - set(names)):
        raise DamagedError(f"{unknown[0]} is not one of its files")
    wrong = [name for name in names[_rank() :: _ranks()] if _size_and_checksum(folder / name) != list(files[name])]
    if found := [name for of_rank in _gather_objects(wrong) for name in of_rank]:
        raise DamagedError(f"{found[0]} is missing or has been changed")
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _Reader(folder).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith(leave_out)
    }


def read_tensors(folder: Path, tensors: dict[str, Tensor], /) -> None:
    """Load tensors by name in place; of a sharded tensor this rank loads its parts.

    Raises:
        CheckpointException: a tensor is missing or has another shape; raised on all ranks.
    """
    with _without_single_process_warning():
        load(tensors, storage_reader=_Reader(folder))


def write_text(path: Path, text: str, /) -> None:
    """Write a text, which is on the disk when this returns."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class _Writer(FileSystemWriter):
    """Writes the index as JSON too."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        # Not metadata.storage_data, which some versions of PyTorch fill in a copy.
        places = {result.index: result.storage_data for of_rank in results for result in of_rank}
        index = {
            name: {
                "dtype": str(entry.properties.dtype).removeprefix("torch."),
                "size": list(entry.size),
                "parts": [
                    [list(part.offsets), list(part.sizes), place.relative_path, place.offset, place.length]
                    for part in entry.chunks
                    for place in (places[MetadataIndex(name, part.offsets)],)
                ],
            }
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        write_text(Path(self.path) / _INDEX, json.dumps(index))


class _Reader(FileSystemReader):
    """Reads the index in JSON, and so no code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        entries: dict[str, Any] = {}
        places = {}
        for name, found in json.loads((Path(self.path) / _INDEX).read_text()).items():
            dtype = _DTYPES[found["dtype"]]
            parts = []
            for offsets, sizes, file, start, length in found["parts"]:
                if Path(file).name != file or not file.endswith(".distcp"):
                    raise DamagedError(f"{_INDEX} names a file elsewhere, {file!r}")
                if torch.Size(sizes).numel() * dtype.itemsize > length:
                    raise DamagedError(f"{_INDEX} tells of more numbers than {file} has room for")
                part = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                places[MetadataIndex(name, part.offsets)] = _StorageInfo(file, start, length)
                parts.append(part)
            size = torch.Size(found["size"])
            if sum(part.sizes.numel() for part in parts) != size.numel():
                raise DamagedError(f"{_INDEX} tells of parts of {name!r} that do not make it up")
            entries[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, parts)
        return Metadata(entries, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def _size_and_checksum(path: Path) -> list[int] | None:
    """Return size and CRC-32, which guards against accidents, not against people; None if there is no such file."""
    if not path.is_file():
        return None
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]


def _gather_objects(own: Any) -> list[Any]:
    """Return the object of each rank."""
    if _ranks() == 1:
        return [own]
    found: list[Any] = [None] * _ranks()
    dist.all_gather_object(found, own)
    return found


@contextmanager
def _without_single_process_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
