"""Hashes of the content of files, kept so that an unchanged file is not read again only to be recognised."""

from __future__ import annotations

import hashlib
import json
import time
from functools import cache
from pathlib import Path
from typing import Final

from equipoise.data.cache import cache_folder
from equipoise.whole_files import replace_file

__all__ = ["Stamp", "code_hash", "content_hash", "stamp_of"]

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds: as long as they stay, a file is taken for unchanged."""

_BLOCK: Final = 1 << 22
_SETTLED_S: Final = 2.0  # a file changed less long ago may change again within one tick of its file system's clock


@cache
def code_hash(*folders: Path) -> str:
    """Return a hash of the Python files in some folders: what they once computed is not theirs any more if it differs.

    Example:
        >>> len(code_hash(Path(__file__).parent))
        32
    """
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


def stamp_of(file: Path, /) -> Stamp:
    """Return size and time of the last change."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def content_hash(file: Path, /) -> str:
    """Return a hash of the bytes of a file, from the cache folder if the file has not changed since.

    Raises:
        OSError: the file cannot be read.
    """
    stamp = stamp_of(file)
    place = str(file.absolute())
    known = cache_folder() / "hashes" / f"{hashlib.blake2b(place.encode(), digest_size=16).hexdigest()}.json"
    try:
        found = json.loads(known.read_text())
        if found["file"] == place and tuple(found["stamp"]) == stamp:
            return str(found["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or another program's: hash the file
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    if time.time() - stamp[1] / 1e9 > _SETTLED_S and stamp_of(file) == stamp:
        try:
            with replace_file(known) as temporary:
                temporary.write_text(json.dumps({"file": place, "stamp": stamp, "hash": digest.hexdigest()}))
        except OSError:
            pass  # the hash is only kept to save time
    return digest.hexdigest()
