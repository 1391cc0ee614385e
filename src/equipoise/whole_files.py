"""Files that are written whole or not at all, so that an interruption leaves what was there before."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace_file", "write_whole"]


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it onto ``path`` when the block succeeds, else remove it.

    Raises:
        FileExistsError: ``path`` is a folder, or a device or pipe, which a file would replace.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replace_file(Path(folder) / "new" / "answer.txt") as temporary:
        ...         _ = temporary.write_text("42")
        ...     (Path(folder) / "new" / "answer.txt").read_text()
        '42'
    """
    if path.exists() and not path.is_file():
        found = "the folder" if path.is_dir() else "a device or pipe at"
        raise FileExistsError(f"Expected the name of a file to write, found {found} {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str, /) -> Path:
    """Write a text file, whole or not at all, and return its path.

    Raises:
        FileExistsError: as by :func:`replace_file`.
    """
    with replace_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path
