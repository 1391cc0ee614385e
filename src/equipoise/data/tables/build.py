"""From files or a table in memory to a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from equipoise.data import encoding
from equipoise.data.cache import cached
from equipoise.data.dataset import Dataset, Split
from equipoise.data.tables.config import TableConfig
from equipoise.data.tables.content import Stamp, code_hash, content_hash, stamp_of
from equipoise.data.tables.feature_checks import constant_features, refuse_answers
from equipoise.data.tables.files import open_locations
from equipoise.data.tables.frames import open_frame
from equipoise.data.tables.locations import Location, find_files
from equipoise.data.tables.preparation import Preparation, prepare
from equipoise.data.tables.split import SPLITS
from equipoise.errors import DataError
from equipoise.settings_file import read_settings

__all__ = ["described", "from_files", "from_frame"]

_CODE: Final = (Path(__file__).parent, Path(encoding.__file__).parent)  # what decides the data set beside its files


def from_files(config: Path | str | Mapping[str, Any] | TableConfig, /) -> Dataset:
    """Return the data set of own files, prepared once for as long as their content and the description stay the same.

    What has been prepared is kept in the cache folder, see :func:`equipoise.data.cache.cache_folder`.

    Args:
        config: a :class:`TableConfig`, its keys as a mapping, or the path of a YAML file with a ``data`` section.

    Raises:
        DataError: the description, a file or a value cannot be used; the message says which, and what to do.
        SettingError: the YAML file cannot be read.
    """
    config = described(config)
    locations = find_files(config.files, file_format=config.format)
    stamps = {location.name: stamp_of(location.path) for location in locations}
    contents = [[content_hash(location.path), location.format, location.partition] for location in locations]

    def build() -> Dataset:
        try:
            source = open_locations(locations, separator=config.separator, null_values=config.null_values)
            found = _dataset(prepare(source, config))
        finally:
            for location in locations:
                _check_unchanged(location, stamps[location.name])
        return found

    options = {**config.model_dump(mode="json", exclude={"files"}), "contents": contents}
    reading = {"format": config.format, "separator": config.separator, "null_values": list(config.null_values)}
    found = cached(re.sub(r"\W+", "-", config.name), options, build, version=code_hash(*_CODE))
    return replace(found, reading=reading, source=", ".join(config.files))


def _check_unchanged(location: Location, before: Stamp) -> None:
    """Refuse rows of a file that was written to while it was read: some would be old and some new."""
    if not location.path.exists() or stamp_of(location.path) != before:
        raise DataError(f"{location.name} was changed while it was read. Run the command again when it is written.")


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
    return _dataset(prepare(open_frame(table), described(config)))


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


def _dataset(found: Preparation) -> Dataset:
    """Encode the rows block by block into tensors of their final size."""
    schema, config = found.schema, found.config
    counts = dict(zip(SPLITS, found.assignment.counts, strict=True))
    splits = {
        name: Split.empty(schema, rows, importance=bool(config.weight), keys=found.keys)
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
    refuse_answers(train, schema)
    notes = (*found.notes, *constant_features(train, schema))
    return Dataset(
        config.name, schema, train, validation, test, notes=notes, epochs=config.epochs,
        batch_size=config.batch_size, group=config.user, values=found.values,
        slices=tuple(found.slices), encoding=found.encoding, user_groups=tuple(config.user_groups),
    )  # fmt: skip


def _tensors(split: Split) -> list[Tensor]:
    found = [split.categorical, split.numeric, split.labels, split.weight, *split.keys.values()]
    return found if split.importance is None else [*found, split.importance]
