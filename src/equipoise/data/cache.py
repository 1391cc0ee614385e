"""The cache folder: built data sets, one Parquet file each, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import PositiveInt, TypeAdapter

from equipoise.data.dataset import Dataset, Split
from equipoise.schema import Schema

__all__ = ["cache_folder", "cached", "read_dataset", "replace_file", "write_dataset"]

_LOG = logging.getLogger(__name__)
_KEY: Final = b"equipoise"  # where a file's own description lies among the Parquet metadata
_WEIGHT, _IMPORTANCE, _SPLIT_KEY = "weight", "importance", "key:"  # names of columns; a key may be named as a feature


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
    values: dict[str, tuple[str, ...]]
    slices: tuple[str, ...]
    keys: tuple[str, ...]
    has_importance: bool


def cache_folder() -> Path:
    """Return the folder for built data: ``$EQUIPOISE_CACHE``, else the user cache of the platform.

    No option of a data set sets it, so that a settings file cannot make a run write elsewhere.
    """
    chosen = os.environ.get("EQUIPOISE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch  # only this branch needs it

    return Path(pooch.os_cache("equipoise"))


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it onto ``path`` when the block succeeds, else remove it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replace_file(Path(folder) / "new" / "answer.txt") as temporary:
        ...         _ = temporary.write_text("42")
        ...     (Path(folder) / "new" / "answer.txt").read_text()
        '42'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    """Write a data set as one Parquet file, the rows of the splits in turn; without its encoding."""
    schema = dataset.schema
    splits = [split.take(slice(None)) for split in (dataset.train, dataset.validation, dataset.test)]
    train, validation, test = (len(split) for split in splits)
    description = _Description(
        dataset.name, (train, validation, test), schema, dataset.notes, dataset.best_ne,
        dataset.epochs, dataset.batch_size, dataset.licence, dataset.source, dataset.group,
        {name: tuple(words) for name, words in dataset.values.items()}, dataset.slices, tuple(splits[0].keys),
        splits[0].importance is not None,
    )  # fmt: skip
    categorical = torch.cat([split.categorical for split in splits]).numpy()
    numeric = torch.cat([split.numeric for split in splits]).numpy()
    labels = torch.cat([split.labels for split in splits]).numpy()
    columns = {name: categorical[:, i] for i, name in enumerate(schema.categorical_columns)}
    columns |= {name: numeric[:, i] for i, name in enumerate(schema.numeric_columns)}
    columns |= {task.name: labels[:, i] for i, task in enumerate(schema.tasks)}
    columns[_WEIGHT] = torch.cat([split.weight for split in splits]).numpy()
    if description.has_importance:
        columns[_IMPORTANCE] = torch.cat([split.importance for split in splits if split.importance is not None]).numpy()
    columns |= {f"{_SPLIT_KEY}{name}": torch.cat([split.keys[name] for split in splits]).numpy()
                for name in description.keys}  # fmt: skip
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(asdict(description)).encode()})
    with replace_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_dataset(path: Path) -> Dataset:
    """Read a file of :func:`write_dataset`.

    Raises:
        ValueError: the file is not a Parquet file of this format.
        OSError: the file cannot be opened.
    """
    # memory_map=False: a mapped file that another process replaces would change under the tensors
    table = pq.read_table(path, memory_map=False)
    metadata = table.schema.metadata or {}
    if _KEY not in metadata:
        raise ValueError("expected a data set written by equipoise, found other Parquet")
    description = TypeAdapter(_Description).validate_json(metadata[_KEY], strict=True)
    rows = description.rows
    if sum(rows) != table.num_rows:
        raise ValueError(f"expected {sum(rows)} rows, found {table.num_rows}")
    columns = description.schema
    schema = Schema(tuple(columns.categorical), tuple(columns.numeric), tuple(columns.tasks), columns.sampled)
    categorical = _columns(table, list(schema.categorical_columns), np.int32)
    numeric = _columns(table, list(schema.numeric_columns), np.float32)
    labels = _columns(table, list(schema.task_names), np.float32)
    weight = _columns(table, [_WEIGHT], np.float32)[:, 0]
    importance = _columns(table, [_IMPORTANCE], np.float32)[:, 0] if description.has_importance else None
    keys = {name: _columns(table, [f"{_SPLIT_KEY}{name}"], np.int64)[:, 0] for name in description.keys}
    ends = [sum(rows[: i + 1]) for i in range(len(rows))]
    train, validation, test = (
        Split(categorical, numeric, labels, weight, importance, keys).take(slice(end - count, end))
        for count, end in zip(rows, ends, strict=True)
    )
    return Dataset(
        description.name, schema, train, validation, test, description.notes, description.best_ne,
        description.epochs, description.batch_size, description.licence, description.source, description.group,
        description.values, description.slices,
    )  # fmt: skip


def _columns(table: pa.Table, names: list[str], dtype: type[np.generic]) -> torch.Tensor:
    # row by row in memory, because batches gather rows
    matrix = np.empty((table.num_rows, len(names)), dtype)
    for i, name in enumerate(names):
        matrix[:, i] = table[name].to_numpy()
    return torch.from_numpy(matrix)
