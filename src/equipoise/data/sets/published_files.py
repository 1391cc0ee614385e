"""Published sets that a user has downloaded: their files are found, and read as own tables are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from equipoise.data.cache import cache_folder
from equipoise.data.dataset import Dataset
from equipoise.data.source import DataSource
from equipoise.data.tables import TableConfig, from_frame
from equipoise.errors import DataError

__all__ = ["dataset_of", "find_files", "folder_of", "look_up", "row_note"]


def folder_of(name: str, folder: Path | str | None) -> Path:
    """Return the folder that was given, else ``$EQUIPOISE_DATA/NAME`` if there is one, else NAME in the cache folder.

    Example:
        >>> folder_of("mnist", "digits").as_posix()
        'digits'
    """
    if folder is not None:
        return Path(folder)
    root = os.environ.get("EQUIPOISE_DATA")
    shared = Path(root) / name if root else None
    return shared if shared is not None and shared.is_dir() else cache_folder() / name


def find_files(folder: Path | str | None, patterns: Sequence[str], source: DataSource) -> list[Path]:
    """Return the files in a folder that match the first pattern with a match, sorted by name.

    Args:
        folder: the folder with the published files; None is refused with where to get them.
        patterns: glob patterns below the folder, tried in turn.

    Raises:
        DataError: there is no such folder or file; the message says where to get it.
    """
    if folder is None:
        raise DataError(
            f"Data set {source.name!r} is read from its published files: {source.obtain} Then say where they lie, as "
            f"in --data {source.name} --data-option folder=PATH."
        )
    for pattern in patterns:
        if found := sorted(Path(folder).glob(pattern)):
            return found
    raise DataError(
        f"Data set {source.name!r}: expected {' or '.join(patterns)} in {folder}, found neither such a file nor "
        f"folder. {source.obtain}"
    )


def dataset_of(
    source: DataSource,
    frame: pl.LazyFrame,
    config: Mapping[str, Any],
    *,
    min_count: int,
    notes: Sequence[str] = (),
) -> Dataset:
    """Return the data set of a table with the name, recipe, licence and address of a published set.

    Args:
        frame: the rows.
        config: the other keys of a :class:`TableConfig`.
        min_count: train rows that a value of a category must occur in for an id of its own.
        notes: sentences that every report shows.
    """
    features = {name: _with_floor(feature, min_count) for name, feature in config["features"].items()}
    config = {**config, "features": features}
    described = TableConfig(name=source.name, epochs=source.epochs, batch_size=source.batch_size, **config)
    found = from_frame(frame, described)
    return replace(found, notes=(*notes, *found.notes), licence=source.licence, source=source.source)


def _with_floor(feature: Any, min_count: int) -> dict[str, Any]:
    described = {"kind": feature} if isinstance(feature, str) else dict(feature)
    return {**described, "min_count": min_count} if described["kind"] in {"category", "categories"} else described


def look_up(rows: pl.LazyFrame, table: pl.LazyFrame, /, *, on: str | Sequence[str]) -> pl.LazyFrame:
    """Return rows with the columns of a table, in their order: a plain join returns them in another one each time.

    Args:
        rows: the rows, all of which are kept.
        table: one row per key.
        on: the key.
    """
    return rows.join(table, on=on, how="left", maintain_order="left")


def row_note(found: int, published: int) -> tuple[str, ...]:
    """Return a note if a table has another number of rows than the published set."""
    if found == published:
        return ()
    return (f"These files hold {found:,} rows; the published set has {published:,}.",)
