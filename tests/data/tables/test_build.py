"""From tables to a data set: the right rows in the right places, from any kind of table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from equipoise.data import Dataset, TableConfig, from_files, from_frame, load
from equipoise.data.tables import files
from equipoise.data.tables.files import open_files
from equipoise.data.tables.preparation import prepare
from equipoise.errors import DataError
from equipoise.schema import Schema
from tests.data.tables.conftest import FEATURES, TASKS, campaign

LOG = campaign()


def config(**changes: Any) -> TableConfig:
    return TableConfig(**{"features": FEATURES, "tasks": TASKS, "time": "ts", "user": "user_id", **changes})


def without_moments(dataset: Dataset) -> tuple[Schema, Any]:
    tasks = [replace(task, mean=0.0, scale=1.0) for task in dataset.schema.tasks]
    assert dataset.encoding is not None
    return replace(dataset.schema, tasks=tasks), dataset.encoding.model_copy(update={"tasks": tasks})


def assert_same(one: Dataset, other: Dataset) -> None:
    assert without_moments(one) == without_moments(other)
    for task, same in zip(one.schema.tasks, other.schema.tasks, strict=True):  # rounded as the blocks are
        np.testing.assert_allclose([task.mean, task.scale], [same.mean, same.scale], rtol=1e-13)
    for name in ("train", "validation", "test"):
        left, right = getattr(one, name), getattr(other, name)
        for column in ("categorical", "numeric", "labels", "weight"):
            torch.testing.assert_close(getattr(left, column), getattr(right, column), equal_nan=True, rtol=0, atol=0)
        assert left.keys.keys() == right.keys.keys()
        for key in left.keys:
            assert (left.keys[key] == right.keys[key]).all()


def test_rows_are_split_encoded_and_labelled() -> None:
    dataset = from_frame(LOG, config(weight="recency", slices=["channel", "recency"], epochs=3, batch_size=64))
    ends = [0, len(dataset.train), len(dataset.train) + len(dataset.validation), LOG.height]
    for i, name in enumerate(["train", "validation", "test"]):
        split, rows = getattr(dataset, name), LOG[ends[i] : ends[i + 1]]  # the log is in order of time
        assert dataset.encoding is not None
        categorical, numeric = dataset.encoding.encode(rows)
        assert (split.categorical == categorical).all()
        assert (split.numeric == numeric).all()
        expected = rows.select(
            pl.col("visit").cast(pl.Float32),
            pl.when(pl.col("visit") == 1).then(pl.col("conversion")).cast(pl.Float32).fill_null(float("nan")),
            pl.when(pl.col("conversion") == 1).then(pl.col("spend")).cast(pl.Float32).fill_null(float("nan")),
        ).to_numpy()
        np.testing.assert_array_equal(split.labels, expected)
        assert (split.weight == 1).all()
        assert split.importance is not None
        np.testing.assert_array_equal(split.importance, rows["recency"])
        names = np.asarray(dataset.values["channel"])[split.keys["channel"]]
        assert names.tolist() == rows["channel"].to_list()
        numbers = np.asarray(dataset.values["recency"])[split.keys["recency"]].astype(int)
        assert numbers.tolist() == rows["recency"].to_list()
        same_user = split.keys["user_id"][:, None] == split.keys["user_id"][None]
        users = rows["user_id"].to_numpy()
        assert (same_user.numpy() == (users[:, None] == users[None])).all()
    assert (dataset.epochs, dataset.batch_size, dataset.group) == (3, 64, "user_id")
    assert dataset.slices == ("channel", "recency")


def test_regressions_are_standardised_by_train_rows() -> None:
    tasks = {
        "visit": "visit",
        "spend": {"kind": "regression"},
        "log": {"kind": "regression", "label": "spend", "loss": "log"},
    }
    dataset = from_frame(LOG, config(tasks=tasks))
    train = LOG[: len(dataset.train)]["spend"].to_numpy()
    spend, log = dataset.schema.task("spend"), dataset.schema.task("log")
    np.testing.assert_allclose([spend.mean, spend.scale], [train.mean(), train.std()])
    np.testing.assert_allclose([log.mean, log.scale], [np.log1p(train).mean(), np.log1p(train).std()])


def test_blocks_give_the_same_as_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    LOG.write_parquet("log.parquet")
    whole = from_files(config(files="log.parquet", slices=["recency"]))
    blocks = files.Table.blocks
    monkeypatch.setattr(files.Table, "blocks", lambda self, columns: blocks(self, columns, rows=37))
    assert_same(from_files(config(files="log.parquet", slices=["recency"])), whole)


def test_several_files_give_the_same_as_one_table() -> None:
    for i in range(3):
        LOG[i * 200 : (i + 1) * 200].write_parquet(f"{i}.parquet", row_group_size=70)
    assert_same(from_files(config(files="*.parquet", slices=["channel"])), from_frame(LOG, config(slices=["channel"])))


def test_a_preparation_yields_its_blocks_from_any_one_on() -> None:
    for i in range(3):
        LOG[i * 200 : (i + 1) * 200].write_parquet(f"{i}.parquet")
    found = prepare(open_files(["*.parquet"]), config(files="*.parquet"))
    all_of_them, rest = list(found.blocks()), list(found.blocks(1))
    assert [sum(map(len, block.values())) for block in all_of_them] == [200, 200, 200]
    for expected, block in zip(all_of_them[1:], rest, strict=True):
        for name, split in block.items():
            assert (split.numeric == expected[name].numeric).all()


def tables() -> dict[str, Any]:
    import pandas as pd

    plain = LOG.to_pandas()
    return {
        "polars": LOG,
        "polars, lazy": LOG.lazy(),
        "pandas": plain,
        "pandas, nullable": plain.convert_dtypes(),
        "pandas, Arrow": plain.convert_dtypes(dtype_backend="pyarrow"),
        "pandas, categories": plain.assign(channel=plain["channel"].astype("category")),
        "pandas, another index": plain.set_index(pd.Index(range(600, 1200))),
        "pyarrow": LOG.to_arrow(),
        "pyarrow, batch": LOG.to_arrow().to_batches()[0],
        "dict": LOG.to_dict(as_series=False),
        "dict of arrays": {name: LOG[name].to_numpy() for name in LOG.columns},
        "structured array": np.rec.fromarrays([LOG[name].to_numpy() for name in LOG.columns], names=LOG.columns),
    }


@pytest.mark.parametrize("kind", list(tables()))
def test_any_kind_of_table_gives_the_same_data_set(kind: str) -> None:
    assert_same(from_frame(tables()[kind], config()), from_frame(LOG, config()))


def test_missing_values_of_pandas_are_missing() -> None:
    import pandas as pd

    frame = pd.DataFrame({"x": [1.0, np.nan, 3.0, 2.0] * 30, "y": [1, 0, pd.NA] * 40}).astype({"y": "Int8"})
    dataset = from_frame(frame, {"features": {"x": {"kind": "number", "indicator": True}}, "tasks": {"y": None}})
    assert dataset.schema.numeric_columns == ("x[0]", "x[1]")
    assert dataset.train.labels.isnan().any()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (LOG["recency"].to_pandas(), "The table cannot be read: found a Series. Expected a table of polars"),
        (np.zeros((3, 2)), "The table cannot be read: found a ndarray. Expected a table of polars, pandas or pyarrow"),
        ([1, 2], "The table cannot be read: found a list"),
        (torch.zeros(3, 2), "The table cannot be read: found a Tensor"),
        ({"x": [1, "a"], "y": [0, 1]}, "The table cannot be read: "),
    ],
)
def test_what_is_no_table_is_refused(table: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_frame(table, {"features": {"x": "number"}, "tasks": {"y": None}})


def test_columns_with_one_name_are_refused() -> None:
    import pandas as pd
    import pyarrow as pa

    twice = [pd.DataFrame([[1, 2]], columns=["x", "x"]), pa.table([pa.array([1])] * 2, names=["x", "x"])]
    for table in twice:
        with pytest.raises(DataError, match="The table: expected columns with different names, found twice: x"):
            from_frame(table, {"features": {"x": "number"}, "tasks": {"y": None}})


def test_a_settings_file_its_section_and_an_object_give_the_same(tmp_path: Path) -> None:
    LOG.write_csv("log.csv")
    (tmp_path / "ranker.yaml").write_text(
        """
data:
  files: log.csv
  time: ts
  user: user_id
  features: {channel: category, recency: number}
  tasks:
    visit: visit
    conversion: {after: visit}
    spend: {kind: regression, after: conversion}
model: shared-bottom
"""
    )
    found = from_files("ranker.yaml")
    section = {"files": "log.csv", "time": "ts", "user": "user_id", "features": FEATURES, "tasks": TASKS}
    for other in (from_files(tmp_path / "ranker.yaml"), from_files(section), load(section),
                  from_files(config(files="log.csv")), from_frame(LOG, "ranker.yaml")):  # fmt: skip
        assert_same(found, other)
    assert (found.name, found.source) == ("log", "log.csv")


def test_a_settings_file_without_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: funnel\n")
    with pytest.raises(DataError, match=r"a.yaml: expected a section `data` that describes tables .* found 'funnel'"):
        from_files("a.yaml")


def test_a_table_in_place_of_a_split_or_of_its_columns_is_told_where_to_go() -> None:
    dataset = from_frame(LOG, config())
    with pytest.raises(
        DataError, match=r"train split: expected a Split, found a DataFrame. .* use equipoise.data.from_f"
    ):
        replace(dataset, train=LOG)
    with pytest.raises(DataError, match=r"categorical of a split should be .*, found a DataFrame. .*from_frame"):
        replace(dataset.train, categorical=LOG)
    with pytest.raises(DataError, match=r"numeric of a split should be .*, found a ndarray"):
        replace(dataset.train, numeric=dataset.train.numeric.numpy())
