"""The cache folder: built data sets, one Parquet file each, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import PositiveInt, TypeAdapter

from equipoise.data.dataset import Dataset, Split
from equipoise.data.encoding import Encoding
from equipoise.schema import Schema
from equipoise.whole_files import replace_file

__all__ = ["cache_folder", "cached", "read_dataset", "write_dataset"]

_LOG = logging.getLogger(__name__)
_KEY: Final = b"equipoise"  # where a file's own description lies among the Parquet metadata
_BLOCK_ROWS: Final = 1 << 17


@dataclass(frozen=True)
class _Description:
    """The metadata of a file; ``rows`` are those of the three splits."""

    name: str
    rows: tuple[PositiveInt, PositiveInt, PositiveInt]
    schema: Schema
    notes: tuple[str, ...]
    best_ne: dict[str, float]
    epochs: PositiveInt
    batch_size: PositiveInt
    licence: str
    source: str
    group: str
    values: dict[str, list[str]]
    slices: tuple[str, ...]
    keys: tuple[str, ...]
    has_importance: bool
    encoding: str | None
    user_groups: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Return the folder for built data: ``$EQUIPOISE_CACHE``, else the user cache of the platform.

    No option of a data set sets it, so that a settings file cannot make a run write elsewhere.
    """
    chosen = os.environ.get("EQUIPOISE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch  # only this branch needs it

    return Path(pooch.os_cache("equipoise"))


def cached(
    name: str,
    options: Mapping[str, object],
    build: Callable[[], Dataset],
    *,
    version: str,
) -> Dataset:
    """Return the data set built before with the same options and version, else build it and keep it.

    A file that cannot be read is replaced, with a warning in the log. Where the cache cannot be written, the
    data set is built and not kept, with a warning too.

    Args:
        name: the data set's name, the beginning of the file's name.
        options: everything that the result depends on, as JSON holds it.
        build: builds the data set.
        version: to change whenever ``build`` gives another result for the same options.
    """
    identity = {"name": name, "options": dict(options), "version": version}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    path = cache_folder() / f"{name}-{digest}.parquet"
    if path.is_file():
        try:
            return read_dataset(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("Cached data set %s cannot be read (%s): building it again.", path, error)
    else:
        _LOG.info("Data set %s is not cached at %s: building it.", name, path)
    dataset = build()
    try:
        write_dataset(dataset, path)
    except OSError as error:
        _LOG.warning(
            "Data set %s cannot be kept in %s (%s): it will be built again next time. "
            "Set EQUIPOISE_CACHE to a folder that can be written.",
            name, path.parent, error,
        )  # fmt: skip
    return dataset


def write_dataset(dataset: Dataset, path: Path) -> None:
    """Write a data set as one Parquet file, the rows of the splits in turn, some of them at a time."""
    splits = (dataset.train, dataset.validation, dataset.test)
    train, validation, test = (len(split) for split in splits)
    first = dataset.train.take(slice(1))
    description = _Description(
        dataset.name, (train, validation, test), dataset.schema, dataset.notes, dataset.best_ne,
        dataset.epochs, dataset.batch_size, dataset.licence, dataset.source, dataset.group,
        {name: list(words) for name, words in dataset.values.items()}, dataset.slices, tuple(first.keys),
        first.importance is not None, None if dataset.encoding is None else dataset.encoding.to_json(),
        dataset.user_groups,
    )  # fmt: skip
    metadata = {_KEY: json.dumps(asdict(description)).encode()}
    schema = _as_table(first, description).schema.with_metadata(metadata)
    with replace_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for split in splits:
            for begin in range(0, len(split), _BLOCK_ROWS):
                rows = split.take(slice(begin, begin + _BLOCK_ROWS))
                writer.write_table(_as_table(rows, description).cast(schema))


def _as_table(split: Split, description: _Description) -> pa.Table:
    return pa.table(
        {
            name: (tensor if place is None else tensor[:, place]).numpy()
            for name, tensor, place in _places(split, description)
        }
    )


def _places(split: Split, description: _Description) -> Iterator[tuple[str, torch.Tensor, int | None]]:
    """Yield the column of the file for each column of a split, with its tensor, and its place there if it has several.

    Columns bear the names of features, tasks and keys behind a word, because those may be the same.
    """
    schema = description.schema
    for word, names, tensor in (("ids", schema.categorical_columns, split.categorical),
                                ("number", schema.numeric_columns, split.numeric),
                                ("label", schema.task_names, split.labels)):  # fmt: skip
        yield from ((f"{word}:{name}", tensor, i) for i, name in enumerate(names))
    yield "weight", split.weight, None
    if split.importance is not None:
        yield "importance", split.importance, None
    yield from ((f"key:{name}", split.keys[name], None) for name in description.keys)


def read_dataset(path: Path) -> Dataset:
    """Read a file of :func:`write_dataset`, some rows at a time.

    Raises:
        ValueError: the file is not a Parquet file of this format.
        OSError: the file cannot be opened.
    """
    # memory_map=False: a mapped file that another process replaces would change under the tensors
    with pq.ParquetFile(path, memory_map=False) as file:
        metadata = file.schema_arrow.metadata or {}
        if _KEY not in metadata:
            raise ValueError("expected a data set written by equipoise, found other Parquet")
        description = TypeAdapter(_Description).validate_json(metadata[_KEY], strict=True)
        if sum(description.rows) != file.metadata.num_rows:
            raise ValueError(f"expected {sum(description.rows)} rows, found {file.metadata.num_rows}")
        columns = description.schema
        schema = Schema(tuple(columns.categorical), tuple(columns.numeric), tuple(columns.tasks), columns.sampled)
        encoding = None
        if description.encoding is not None:
            encoding = Encoding.from_json(description.encoding)
            schema = encoding.schema_of_batches
        splits = _read_splits(file, description)
    train, validation, test = splits
    return Dataset(
        description.name, schema, train, validation, test, description.notes, description.best_ne,
        description.epochs, description.batch_size, description.licence, description.source, description.group,
        description.values, description.slices, encoding, user_groups=description.user_groups,
    )  # fmt: skip


def _read_splits(file: pq.ParquetFile, description: _Description) -> list[Split]:
    schema, rows = description.schema, sum(description.rows)
    whole = Split.empty(schema, rows, importance=description.has_importance, keys=description.keys)
    places = list(_places(whole, description))
    begin = 0
    for batch in file.iter_batches(_BLOCK_ROWS):
        for name, tensor, place in places:
            target = tensor[begin : begin + batch.num_rows]
            values = torch.from_numpy(np.array(batch[name].to_numpy(zero_copy_only=False)))
            (target if place is None else target[:, place])[:] = values
        begin += batch.num_rows
    ends = np.cumsum(description.rows).tolist()
    return [whole.take(slice(end - count, end)) for count, end in zip(description.rows, ends, strict=True)]
