"""The journal of a preparation: ``journal.jsonl`` holds a line for each block whose parts are whole on disk."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from pydantic import TypeAdapter

from equipoise.data.stream.manifest import JOURNAL, SPLITS, About, Part
from equipoise.errors import DataError

__all__ = ["Journal", "crc32_of", "refuse_others"]

_CHUNK: Final = 2**22
_PARTS: Final = TypeAdapter(list[Part])


class Journal:
    """The blocks of a prepared folder that are whole, in order.

    Attributes:
        about: the facts about the data set that the first call has found.
        blocks: the parts of each block.
    """

    def __init__(self, folder: Path, about: About, blocks: Sequence[Sequence[Part]]) -> None:
        self.about = about
        self.blocks = [list(parts) for parts in blocks]
        self._file = folder / JOURNAL

    @classmethod
    def begin(cls, folder: Path, made_from: Mapping[str, Any], about: About, /) -> Self:
        """Begin a folder that holds nothing yet.

        Raises:
            DataError: it holds something.
        """
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(f"Expected an empty folder or none yet, found other files in {folder}: name another one.")
        folder.mkdir(parents=True, exist_ok=True)
        found = cls(folder, about, [])
        found._append(json.dumps({"made_from": made_from, "about": about.model_dump(mode="json")}))
        return found

    @classmethod
    def open(cls, folder: Path, made_from: Mapping[str, Any], /) -> Self | None:
        """Return the journal that an earlier call has left, up to the first block that is not whole; None if none.

        Raises:
            DataError: it was made from other files or settings.
        """
        file = folder / JOURNAL
        if not file.is_file():
            return None
        head, *lines = file.read_text().split("\n")[:-1] or [""]  # without a line that was cut off
        if not head:
            file.unlink()
            return None
        begun = json.loads(head)
        refuse_others(folder, begun["made_from"], made_from)
        found = cls(folder, About.model_validate(begun["about"]), [])
        for line in lines:
            parts = _PARTS.validate_json(line)
            if not all(_is_whole(folder, part) for part in parts):
                break
            found.blocks.append(parts)
        file.write_text("\n".join([head, *lines[: len(found.blocks)], ""]))
        for split in SPLITS:
            for left in (folder / split).glob(".*.tmp"):
                left.unlink()
        return found

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
        self._file.unlink()

    def _append(self, line: str) -> None:
        with self._file.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


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


def _is_whole(folder: Path, part: Part) -> bool:
    path = folder / part.file
    return path.is_file() and path.stat().st_size == part.size and crc32_of(path) == part.crc32


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: entry
        for inner, v in value.items()
        for key, entry in _flat(v, f"{name}.{inner}" if name else inner).items()
    }
