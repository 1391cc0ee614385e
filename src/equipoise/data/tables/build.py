"""From files or a table in memory to a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.data.dataset import Dataset, Split
from equipoise.data.tables.config import TableConfig
from equipoise.data.tables.files import open_files
from equipoise.data.tables.frames import open_frame
from equipoise.data.tables.preparation import Preparation, prepare
from equipoise.data.tables.split import SPLITS
from equipoise.errors import DataError
from equipoise.settings_file import read_settings

__all__ = ["described", "from_files", "from_frame"]


def from_files(config: Path | str | Mapping[str, Any] | TableConfig, /) -> Dataset:
    """Return the data set of own files.

    Args:
        config: a :class:`TableConfig`, its keys as a mapping, or the path of a YAML file with a ``data`` section.

    Raises:
        DataError: the description, a file or a value cannot be used; the message says which, and what to do.
        SettingError: the YAML file cannot be read.
    """
    config = described(config)
    source = open_files(
        config.files, file_format=config.format, separator=config.separator, null_values=config.null_values
    )
    reading = {"format": config.format, "separator": config.separator, "null_values": list(config.null_values)}
    return replace(_dataset(prepare(source, config), ", ".join(config.files)), reading=reading)


def from_frame(table: Any, config: Path | str | Mapping[str, Any] | TableConfig, /) -> Dataset:
    """Return the data set of a table in memory.

    Args:
        table: a table of polars, pandas or pyarrow, a dict of columns, or a structured array of numpy.
        config: as of :func:`from_files`; ``files`` are not read.

    Raises:
        DataError: the description, the table or a value cannot be used; the message says which, and what to do.
        SettingError: the YAML file cannot be read.

    Example:
        >>> rows = {"zip": ["rural", "urban"] * 50, "age": list(range(100)), "visit": [0, 1, 1, 0] * 25}
        >>> config = TableConfig(features={"zip": "category", "age": "number"}, tasks={"visit": "visit"})
        >>> dataset = from_frame(rows, config)
        >>> dataset.schema.categorical_columns, dataset.schema.numeric_columns, dataset.schema.task_names
        (('zip',), ('age',), ('visit',))
    """
    return _dataset(prepare(open_frame(table), described(config)), "")


def described(config: Path | str | Mapping[str, Any] | TableConfig, /) -> TableConfig:
    """Return the description of own tables that a YAML file, its keys as a mapping, or an object holds.

    Raises:
        DataError: it cannot be used; the message says why.
        SettingError: the YAML file cannot be read.
    """
    if isinstance(config, TableConfig):
        return config
    if isinstance(config, Path | str):
        settings = read_settings(Path(config))
        if not isinstance(settings.get("data"), Mapping):
            raise DataError(
                f"{config}: expected a section `data` that describes tables (files, features, tasks), found "
                f"{settings.get('data')!r}."
            )
        config = settings["data"]
    return TableConfig.of(config)


def _dataset(found: Preparation, source: str) -> Dataset:
    """Encode the rows block by block into tensors of their final size."""
    schema, config = found.schema, found.config
    counts = dict(zip(SPLITS, found.assignment.counts, strict=True))
    splits = {
        name: Split(
            torch.empty(rows, len(schema.categorical_columns), dtype=torch.int32),
            torch.empty(rows, len(schema.numeric_columns)),
            torch.empty(rows, len(schema.tasks)),
            torch.empty(rows),
            torch.empty(rows) if config.weight else None,
            {key: torch.empty(rows, dtype=torch.int64) for key in found.keys},
        )
        for name, rows in counts.items()
    }
    done = dict.fromkeys(SPLITS, 0)
    for block in found.blocks():
        for name, rows in block.items():
            at = slice(done[name], done[name] + len(rows))
            for target, values in zip(_tensors(splits[name]), _tensors(rows), strict=True):
                target[at] = values
            done[name] += len(rows)
    train, validation, test = splits.values()
    return Dataset(
        config.name, schema, train, validation, test, notes=found.notes, epochs=config.epochs,
        batch_size=config.batch_size, source=source, group=config.user, values=found.values,
        slices=tuple(found.slices), encoding=found.encoding,
    )  # fmt: skip


def _tensors(split: Split) -> list[Tensor]:
    found = [split.categorical, split.numeric, split.labels, split.weight, *split.keys.values()]
    return found if split.importance is None else [*found, split.importance]
