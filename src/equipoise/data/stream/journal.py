"""The journal of a preparation: ``journal.jsonl`` holds a line for each block whose parts are whole on disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TextIO

from pydantic import TypeAdapter

from equipoise.data.stream.manifest import JOURNAL, SPLITS, About, File, Part
from equipoise.errors import DataError

__all__ = ["Journal", "crc32_of", "is_whole", "refuse_others"]

_CHUNK: Final = 2**22
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_PARTS: Final = TypeAdapter(list[Part])


class Journal:
    """The blocks of a prepared folder that are whole, in order, as its file holds them, a line each.

    Attributes:
        blocks: the parts of each block.
    """

    def __init__(self, file: TextIO, about: str, blocks: Sequence[Sequence[Part]]) -> None:
        self.blocks = [list(parts) for parts in blocks]
        self._file, self._about = file, about

    @classmethod
    @contextmanager
    def held(cls, folder: Path, made_from: Mapping[str, Any], /) -> Iterator[Self]:
        """Begin the journal of a folder, or go on with that of an earlier call, up to the first block not whole.

        No other process can hold it within the block; afterwards it stays for the next call, unless it was removed.

        Raises:
            DataError: the folder holds something else, its journal was made from other files or settings, or another
                process prepares it.
        """
        path = folder / JOURNAL
        if not path.is_file() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"Expected an empty folder or none yet, found something else at {folder}: name another.")
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            _lock(file, folder)
            file.seek(0)
            head, about, *lines = [*file.read().split("\n")[:-1], "", ""]  # without a line that was cut off
            if head:
                refuse_others(folder, json.loads(head), made_from)
            else:
                head = json.dumps(made_from)
                file.write(head + "\n")
            found = cls(file, about, [])
            for line in filter(None, lines):
                parts = _PARTS.validate_json(line)
                if not all(is_whole(folder, part) for part in parts):
                    break
                found.blocks.append(parts)
            kept = [line for line in (head, about, *lines[: len(found.blocks)]) if line]
            file.truncate(sum(len(line.encode()) + 1 for line in kept))
            for split in SPLITS:
                for left in (folder / split).glob(".*.tmp"):
                    left.unlink()
            yield found

    def describe(self, about: About, encoding: File | None, /) -> None:
        """Note the facts about the data set and its encoding, or check that an earlier call has found the same.

        Raises:
            DataError: it has found others.
        """
        text = json.dumps([about.model_dump(mode="json"), encoding and encoding.model_dump()])
        if not self._about:
            self._about = text
            self._append(text)
        elif self._about != text:
            raise DataError(
                "An earlier call found other facts about the same files and settings, in "
                f"{Path(self._file.name).parent}: remove the folder and prepare it again."
            )

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts that are whole."""
        return tuple(part for parts in self.blocks for part in parts)

    @property
    def rows(self) -> int:
        """The rows of all parts that are whole."""
        return sum(sum(part.groups) for part in self.parts)

    def add(self, parts: Sequence[Part], /) -> None:
        """Note that the next block is whole on disk."""
        self.blocks.append(list(parts))
        self._append(_PARTS.dump_json(list(parts)).decode())

    def remove(self) -> None:
        """Remove the file: the manifest has taken its place."""
        Path(self._file.name).unlink()

    def _append(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _lock(file: TextIO, folder: Path) -> None:
    """Hold the file until it is closed, or its process ends; nothing where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"Another process prepares {folder}: wait until it is done, or name another folder.") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def refuse_others(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any], /) -> None:
    """Refuse a folder that was made from other files or settings.

    Raises:
        DataError: they differ; the message names the first few.
    """
    before, now = _flat(there), _flat(here)
    differing = [
        f"{name}: {before.get(name, 'none')} there, {now.get(name, 'none')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differing:
        more = f"\n  and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise DataError(
            f"{folder} holds data prepared from other files or settings:\n  " + "\n  ".join(differing[:5]) + more
            + "\nName another folder, or remove this one."
        )  # fmt: skip


def crc32_of(path: Path, /) -> int:
    """Return the checksum of a file."""
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def is_whole(folder: Path, file: File, /) -> bool:
    """Return whether a file of the folder has the size and the content that it was written with."""
    path = folder / file.file
    return path.is_file() and path.stat().st_size == file.size and crc32_of(path) == file.crc32


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: entry
        for inner, v in value.items()
        for key, entry in _flat(v, f"{name}.{inner}" if name else inner).items()
    }
