"""Names of files in settings (a file, a glob, a folder, a URL) to local files that can be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from equipoise.data.cache import cache_folder
from equipoise.data.tables.config import FileFormat
from equipoise.errors import DataError, did_you_mean
from equipoise.whole_files import replace_file

__all__ = ["Location", "find_files"]

_ENDINGS: Final[dict[str, FileFormat]] = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
}  # fmt: skip
_COMPRESSED: Final = {".gz", ".zst"}
_MAGIC: Final = frozenset("*?[")
_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Location:
    """One file.

    Attributes:
        name: the file as its user would write it, for messages.
        path: the file on this machine, a copy if it comes from elsewhere.
        format: the format that its ending or the settings state.
        partition: columns that the names of its folders state, as in ``day=2026-01-01``, with their texts.
    """

    name: str
    path: Path
    format: FileFormat
    partition: tuple[tuple[str, str | None], ...]


def find_files(patterns: Sequence[str], /, *, file_format: FileFormat | None = None) -> list[Location]:
    """Return the files that the patterns name, each once, sorted by name within a pattern.

    A folder stands for all its files, at any depth, that end like a table (``.parquet``, ``.csv``, ``.tsv``; ``.gz`` or
    ``.zst`` behind) or, with ``file_format``, for all; names that begin with a dot or an underscore are left out. A
    file from elsewhere is copied to the cache folder once, for as long as it stays the same there.

    Raises:
        DataError: a pattern names no file, a file has no known ending, or a file system needs a package or an access
            that is missing.
    """
    if not patterns:
        raise DataError("Expected files to read (the key `files`), found none.")
    found: dict[str, Location] = {}
    for pattern in patterns:
        for location in _of_pattern(pattern, file_format):
            found.setdefault(location.name, location)
    return list(found.values())


def _of_pattern(pattern: str, file_format: FileFormat | None) -> Iterator[Location]:
    try:
        fs, root = fsspec.core.url_to_fs(pattern)
        paths = _paths(fs, root, pattern, file_format)
    except DataError:
        raise
    except (ImportError, ValueError) as error:
        raise DataError(f"{pattern} cannot be opened: {error}.") from error
    except OSError as error:
        raise DataError(f"{pattern} cannot be read: {error.strerror or error}.") from error
    is_local = isinstance(fs, LocalFileSystem)
    for path in paths:
        name = _shown(path) if is_local else str(fs.unstrip_protocol(path))
        chosen = file_format or _format_of(path)
        if chosen is None:
            endings = ", ".join(_ENDINGS)
            raise DataError(f"{name}: expected a file that ends in {endings} (with .gz or .zst behind), or the key "
                            "`format`.")  # fmt: skip
        yield Location(name, Path(path) if is_local else _copied(fs, path, name), chosen, _partition(path))


def _paths(fs: Any, root: str, pattern: str, file_format: FileFormat | None) -> list[str]:
    """Return the files of a pattern; a name that exists as it stands is no glob."""
    if fs.isfile(root):
        return [root]
    matches = [root] if fs.isdir(root) else _matches(fs, root) if _MAGIC & set(root) else []
    files: list[str] = []
    for match in matches:
        files += _in_folder(fs, match, file_format) if fs.isdir(match) else [match]
    if not files:
        raise DataError(_nothing_there(fs, root, pattern, matches))
    return files


def _matches(fs: Any, root: str) -> list[str]:
    """Return the files and folders that match a glob, without hidden ones, as a shell does."""
    return [path for path in sorted(fs.glob(root)) if not PurePosixPath(path).name.startswith(".")]


def _in_folder(fs: Any, folder: str, file_format: FileFormat | None) -> list[str]:
    found = []
    for path in sorted(fs.find(folder)):
        inside = PurePosixPath(path).relative_to(PurePosixPath(folder)).parts
        is_hidden = any(part.startswith((".", "_")) and "=" not in part for part in inside)
        if not is_hidden and (file_format or _format_of(path)):
            found.append(path)
    return found


def _nothing_there(fs: Any, root: str, pattern: str, matches: list[str]) -> str:
    if matches:
        endings = ", ".join(_ENDINGS)
        return f"{pattern} holds no table: expected files that end in {endings} (with .gz or .zst behind)."
    path = PurePosixPath(root)
    folder = next(parent for parent in path.parents if not _MAGIC & set(str(parent)))
    if not fs.isdir(str(folder)):
        return f"Expected files at {pattern}; the folder {_shown(str(folder))} is not there."
    names = [PurePosixPath(other).name for other in fs.ls(str(folder), detail=False)]
    what = "no file matches" if _MAGIC & set(root) else "there is no such file"
    return f"Expected files at {pattern}; {what} in {_shown(str(folder))}{did_you_mean(path.name, names) or '.'}"


def _format_of(path: str) -> FileFormat | None:
    name = PurePosixPath(path)
    return _ENDINGS.get((name.with_suffix("") if name.suffix in _COMPRESSED else name).suffix.lower())


def _partition(path: str) -> tuple[tuple[str, str | None], ...]:
    pairs = [part.partition("=") for part in PurePosixPath(path).parent.parts if "=" in part]
    return tuple((unquote(name), None if value == _NO_VALUE else unquote(value)) for name, _, value in pairs if name)


def _shown(path: str) -> str:
    """Return a path as seen from the working directory, if it lies in it."""
    full = Path(path)
    if full == Path.cwd():
        return "the current folder"
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else path


def _copied(fs: Any, path: str, name: str) -> Path:
    """Return a copy on this machine; file systems name what a file holds now by a key of their own."""
    digest = hashlib.blake2b(f"{name} {fs.ukey(path)}".encode(), digest_size=8).hexdigest()
    copy = cache_folder() / "copies" / digest / PurePosixPath(path).name
    if not copy.is_file():
        try:
            with replace_file(copy) as temporary:
                fs.get_file(path, str(temporary))
        except OSError as error:
            error.add_note(f"{name} is copied to {copy.parent}: set EQUIPOISE_CACHE to a folder with enough space.")
            raise
    return copy
