"""Own tables to a prepared folder: files are read, encoded and written block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from equipoise.data.dataset import Split
from equipoise.data.source import StageListener
from equipoise.data.stream.layout import Layout
from equipoise.data.stream.manifest import About, Manifest
from equipoise.data.stream.writing import Block, Content, write_prepared
from equipoise.data.tables.build import described
from equipoise.data.tables.config import TableConfig
from equipoise.data.tables.content import content_hash
from equipoise.data.tables.files import BLOCK_ROWS, Source, open_files
from equipoise.data.tables.preparation import Preparation
from equipoise.data.tables.preparation import prepare as settle
from equipoise.errors import DataError

__all__ = ["prepare"]

_MOST_BLOCKS: Final = 8
_PART_BYTES: Final = 2**28


def prepare(
    config: Path | str | Mapping[str, Any] | TableConfig,
    out: Path | str,
    /,
    *,
    on_stage: StageListener | None = None,
) -> Manifest:
    """Write own tables as a prepared folder, in memory that does not grow with the features of the rows.

    Kept for all rows at once are the split of each (1 byte), its time or user (8 bytes) while the split is made, and
    the vocabularies. Everything else is read, encoded and written about a million rows at a time. A call that was ended
    goes on after the last whole part when it is repeated.

    Args:
        config: a :class:`TableConfig`, its keys as a mapping, or the path of a YAML file with a ``data`` section.
        out: the folder; created if it does not exist.
        on_stage: called with what comes next and the share of the work done.

    Raises:
        DataError: the description, a file or a value cannot be used, the folder holds something else, or a file was
            changed since an earlier call or during this one.
        OSError: the folder cannot be written, such as for lack of space; whole parts stay.
    """
    announce = on_stage or (lambda _, __: None)
    config = described(config)
    announce("Opening files", 0.0)
    source = open_files(
        config.files, file_format=config.format, separator=config.separator, null_values=config.null_values
    )
    files = _hashes(source)
    rows = sum(part.rows for part in source.parts)

    def content() -> Content:
        announce("Fitting the encoding", 0.05)
        found = settle(source, config)
        about = About(
            name=config.name, columns=found.schema, keys=found.keys, importance=bool(config.weight), notes=found.notes,
            epochs=config.epochs, batch_size=config.batch_size, source=", ".join(config.files), group=config.user,
            values=found.values, slices=tuple(found.slices), user_groups=tuple(config.user_groups),
        )  # fmt: skip
        announce("Writing", 0.4)
        return Content(about, found.encoding, lambda first: _blocks(found, Layout(about), first, source, files))

    return write_prepared(
        Path(out),
        {"files": files, "settings": config.model_dump(mode="json")},
        content,
        on_rows=lambda done: announce("Writing", 0.4 + 0.6 * done / rows),
    )


def _hashes(source: Source) -> dict[str, str]:
    return {part.name: content_hash(part.path) for part in source.parts if part.path is not None}


def _blocks(
    found: Preparation, layout: Layout, first: int, source: Source, files: Mapping[str, str]
) -> Iterator[Block]:
    """Yield blocks of about a million rows, fewer where they are wide; check at the end that no file has changed."""
    together = max(1, min(_MOST_BLOCKS, _PART_BYTES // (BLOCK_ROWS * layout.row_bytes)))
    blocks = found.blocks(first * together)
    while several := list(islice(blocks, together)):
        yield {name: Split.joined([block[name] for block in several]) for name in several[0]}
    if changed := [name for name, content in _hashes(source).items() if content != files[name]]:
        raise DataError(f"{changed[0]} was changed while it was being prepared: prepare it again into another folder.")
