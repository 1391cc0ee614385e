"""The writing of a prepared folder: block by block, each part whole or not at all, so that a killed run goes on."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from equipoise.data.dataset import Split
from equipoise.data.encoding import Encoding
from equipoise.data.stream.journal import Journal, crc32_of, is_whole, refuse_others
from equipoise.data.stream.layout import Layout, rows_per_group
from equipoise.data.stream.manifest import (
    ENCODING,
    MANIFEST,
    SPLITS,
    About,
    File,
    Manifest,
    Part,
    SplitName,
    is_prepared,
    read_manifest,
)
from equipoise.errors import DataError
from equipoise.whole_files import replace_file

__all__ = ["Block", "Content", "write_prepared"]

Block = Mapping[str, Split]
"""Encoded rows of one stretch of the source, by the name of their split; a split without rows there may be missing."""


@dataclass(frozen=True)
class Content:
    """The content of a folder that is to be prepared.

    Attributes:
        about: the facts about the data set.
        encoding: what turns raw rows into these; None if they do not come as a table.
        blocks: yields the blocks from the given one on, always the same ones.
    """

    about: About
    encoding: Encoding | None
    blocks: Callable[[int], Iterator[Block]]


def write_prepared(
    folder: Path,
    made_from: Mapping[str, Any],
    content: Callable[[], Content],
    *,
    on_rows: Callable[[int], None] | None = None,
) -> Manifest:
    """Write a prepared folder block by block; go on after the last whole block if an earlier call was ended.

    Args:
        folder: the folder; created if it does not exist.
        made_from: the files and settings behind the rows, by name, as JSON holds them. A folder made from others is
            refused.
        content: returns what to write; not called where the folder is whole.
        on_rows: called after each block with the number of rows written so far, those of an earlier call included.

    Raises:
        DataError: the folder holds something else, is whole but for a file that was changed, a block does not fit the
            schema, or a split has no rows.
        OSError: the folder cannot be written, such as for lack of space; whole parts stay.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> about = About(name="tiny", columns=Schema([Categorical("user", 9)], [], [Task("click")]))
        >>> rows = Split(torch.ones(4, 1, dtype=torch.int32), torch.empty(4, 0), torch.ones(4, 1), torch.ones(4))
        >>> block = {"train": rows, "validation": rows.take(slice(2)), "test": rows.take(slice(1))}
        >>> content = Content(about, None, lambda first: iter([block][first:]))
        >>> with TemporaryDirectory() as folder:
        ...     write_prepared(Path(folder), {}, lambda: content).rows()
        {'train': 4, 'validation': 2, 'test': 1}
    """
    made_from = dict(json.loads(json.dumps(made_from)))  # as it will be read again
    if is_prepared(folder):
        manifest = read_manifest(folder)
        refuse_others(folder, manifest.made_from, made_from)
        _refuse_changed(folder, manifest)
        return manifest
    with _named_when_full(folder), Journal.held(folder, made_from) as journal:
        found = content()
        about, layout = found.about, Layout(found.about)
        encoding = None if found.encoding is None else _write_encoding(folder, found.encoding)
        journal.describe(about, encoding)
        for place, block in enumerate(found.blocks(len(journal.blocks)), start=len(journal.blocks)):
            for name, rows in block.items():
                try:
                    rows.check(about.columns)
                except ValueError as error:
                    raise DataError(f"{about.name}, {name} split, block {place}: {error}") from None
            journal.add([
                _write_part(folder, name, place, layout, block[name])
                for name in SPLITS
                if len(block.get(name, ()))
            ])  # fmt: skip
            if on_rows is not None:
                on_rows(journal.rows)
        manifest = Manifest(about=about, made_from=made_from, encoding=encoding, parts=journal.parts)
        if empty := [name for name, rows in manifest.rows().items() if not rows]:
            raise DataError(f"{about.name}, {empty[0]} split: expected at least one row, found none.")
        with replace_file(folder / MANIFEST) as temporary:
            temporary.write_text(manifest.model_dump_json(indent=1))
        journal.remove()
    return manifest


def _refuse_changed(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        if not is_whole(folder, file):
            raise DataError(
                f"{folder / file.file} was changed since its preparation: put it back, or remove the folder and "
                "prepare it again."
            )


def _write_encoding(folder: Path, encoding: Encoding) -> File:
    with replace_file(folder / ENCODING) as temporary:
        temporary.write_text(encoding.to_json())
        return File(file=ENCODING, size=temporary.stat().st_size, crc32=crc32_of(temporary))


def _write_part(folder: Path, split: SplitName, place: int, layout: Layout, rows: Split) -> Part:
    group_rows = rows_per_group(layout)
    path = folder / split / f"part-{place:05d}.parquet"
    with replace_file(path) as temporary:
        # LZ4 without dictionaries is read fastest of what is compressed and others can read: stream-layouts.md
        with pq.ParquetWriter(
            temporary, layout.arrow_schema, compression="lz4", use_dictionary=False, write_statistics=False,
            write_page_checksum=True,
        ) as writer:  # fmt: skip
            writer.write_table(layout.table(rows), row_group_size=group_rows)
        return Part(
            split=split,
            file=f"{split}/{path.name}",
            groups=tuple(min(group_rows, len(rows) - start) for start in range(0, len(rows), group_rows)),
            size=temporary.stat().st_size,
            crc32=crc32_of(temporary),
        )


@contextmanager
def _named_when_full(folder: Path) -> Iterator[None]:
    """Say what to do about a lack of space."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise OSError(
            error.errno,
            f"No space is left in {folder} ({error}). Free some, or name a folder on a larger disk",
        ) from error
