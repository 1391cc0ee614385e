"""The manifest of a prepared folder: ``manifest.json`` names its parts; written last, it says that all are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equipoise.errors import DataError
from equipoise.schema import Schema

__all__ = [
    "ENCODING",
    "JOURNAL",
    "MANIFEST",
    "SPLITS",
    "About",
    "File",
    "Manifest",
    "Part",
    "SplitName",
    "is_prepared",
    "read_manifest",
]

MANIFEST: Final = "manifest.json"
ENCODING: Final = "encoding.json"
JOURNAL: Final = "journal.jsonl"
"""The file that says which blocks are whole before there is a manifest."""

SplitName = Literal["train", "validation", "test"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation", "test")
VERSION: Final = 1

_AGAIN: Final = "prepare it again with `equipoise data prepare`"


class _Stated(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class About(_Stated):
    """The facts about a data set besides rows and encoding, as :class:`equipoise.data.Dataset` holds them.

    Attributes:
        columns: the schema.
        keys: names of the key columns.
        importance: whether rows have an importance.
    """

    name: str
    columns: Schema
    keys: tuple[str, ...] = ()
    importance: bool = False
    notes: tuple[str, ...] = ()
    best_ne: dict[str, float] = Field(default_factory=dict)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=2048, ge=1)
    licence: str = ""
    source: str = ""
    group: str = ""
    values: dict[str, list[str]] = Field(default_factory=dict)
    slices: tuple[str, ...] = ()
    user_groups: tuple[str, ...] = ()


class File(_Stated):
    """One file of the folder.

    Attributes:
        file: its path within the folder.
        size: its bytes.
        crc32: the checksum of its content.
    """

    file: str
    size: int
    crc32: int


class Part(File):
    """One Parquet file of a split.

    Attributes:
        groups: rows of each of its row groups.
    """

    split: SplitName
    groups: tuple[int, ...]


class Manifest(_Stated):
    """The content of ``manifest.json``.

    Attributes:
        made_from: the files and settings behind the rows, by name.
        encoding: the file with what turned raw rows into these; None if they did not come as a table.
    """

    kind: Literal["equipoise prepared data"] = "equipoise prepared data"
    version: Literal[1] = VERSION
    about: About
    made_from: dict[str, Any]
    encoding: File | None
    parts: tuple[Part, ...]

    @property
    def files(self) -> tuple[File, ...]:
        """All files besides the manifest."""
        return self.parts if self.encoding is None else (*self.parts, self.encoding)

    def of_split(self, split: str, /) -> Sequence[Part]:
        """Return the parts of one split."""
        return [part for part in self.parts if part.split == split]

    def rows(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {split: sum(sum(part.groups) for part in self.of_split(split)) for split in SPLITS}

    def digest(self, split: str, /) -> bytes:
        """Return a hash of the content of one split."""
        content = [(part.groups, part.size, part.crc32) for part in self.of_split(split)]
        return hashlib.sha256(json.dumps(content).encode()).digest()


def is_prepared(folder: Path, /) -> bool:
    """Return whether a folder holds a manifest."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path, /) -> Manifest:
    """Read the manifest of a prepared folder and check that its parts are there, each with its size.

    Raises:
        DataError: the folder is none that was prepared to the end, is of another version, or a part is missing or of
            another size.
    """
    if not is_prepared(folder):
        found = "an unfinished preparation" if (folder / JOURNAL).is_file() else "none"
        raise DataError(f"Expected a prepared folder with a {MANIFEST}, found {found} in {folder}: {_AGAIN}.")
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise DataError(f"{folder / MANIFEST} is damaged ({error}): {_AGAIN}.") from error
    _check_version(folder, content)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{folder / MANIFEST} is damaged ({where}: {first['msg']}): {_AGAIN}.") from error
    for file in manifest.files:
        _check_size(folder, file)
    return manifest


def _check_size(folder: Path, file: File) -> None:
    path = folder / file.file
    if not path.is_file():
        raise DataError(f"A part of the prepared data is missing: {path}. Put it back, or {_AGAIN}.")
    if (size := path.stat().st_size) != file.size:
        raise DataError(
            f"Expected {file.size:,} bytes in {path}, found {size:,}: the file was cut off or changed. Put it back, or "
            f"remove the folder and {_AGAIN}."
        )


def _check_version(folder: Path, content: Any) -> None:
    found = content if isinstance(content, Mapping) else {}
    if found.get("kind") != "equipoise prepared data":
        raise DataError(f"Expected a manifest of prepared data, found another file in {folder / MANIFEST}.")
    if found.get("version") != VERSION:
        raise DataError(
            f"Expected a manifest of version {VERSION}, found version {found.get('version')!r} in {folder / MANIFEST}: "
            f"use the equipoise that wrote it, or {_AGAIN}."
        )
