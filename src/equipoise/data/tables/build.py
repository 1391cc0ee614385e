"""From files or a table in memory to a data set: read, split, fit the encoding on train rows, encode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from equipoise.data.dataset import Dataset, Split
from equipoise.data.encoding import Encoding, fit
from equipoise.data.tables.config import TableConfig
from equipoise.schema import Task
from equipoise.settings_file import read_settings

__all__ = ["from_files", "from_frame"]


def from_files(config: Path | str | Mapping[str, Any] | TableConfig, /) -> Dataset:
    """Return the data set that a settings file, its ``data`` section or a :class:`TableConfig` describes."""
    if isinstance(config, Path | str):
        config = read_settings(Path(config))["data"]
    if not isinstance(config, TableConfig):
        config = TableConfig.of(config)
    scan = pl.scan_parquet if config.files[0].endswith(".parquet") else pl.scan_csv
    return _build(pl.concat([scan(file) for file in config.files]).collect(), config)


def from_frame(table: Any, config: TableConfig, /) -> Dataset:
    """Return the data set of a table of polars, pandas or pyarrow."""
    return _build(pl.DataFrame(table), config)


def _build(frame: pl.DataFrame, config: TableConfig) -> Dataset:
    order = np.random.default_rng(config.split.seed).permutation(frame.height)
    if config.split.by == "time" and config.time is not None:
        order = frame[config.time.column].arg_sort().to_numpy()
    ends = [round(frame.height * (1 - config.split.test - config.split.validation)),
            round(frame.height * (1 - config.split.test))]  # fmt: skip
    train, validation, test = (frame[part] for part in np.split(order, ends))
    tasks = [Task(name, kind=task.kind, after=task.after) for name, task in config.tasks.items()]
    encoding = fit(train.lazy(), config.features, tasks)
    return Dataset(
        config.name, encoding.schema_of_batches,
        _split(train, encoding, config), _split(validation, encoding, config), _split(test, encoding, config),
        epochs=config.epochs, batch_size=config.batch_size, encoding=encoding,
    )  # fmt: skip


def _split(frame: pl.DataFrame, encoding: Encoding, config: TableConfig) -> Split:
    categorical, numeric = encoding.encode(frame)
    columns = []
    for name, task in config.tasks.items():
        label = pl.sql_expr(task.label).cast(pl.Float32)
        if task.after:
            parent = pl.sql_expr(config.tasks[task.after].label).cast(pl.Float32)
            label = pl.when(parent == 1).then(label)
        columns.append(label.fill_null(float("nan")).alias(name))
    labels = torch.from_numpy(frame.select(columns).to_numpy().astype(np.float32))
    return Split(categorical, numeric, labels, torch.ones(frame.height))
