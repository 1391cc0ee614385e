"""The description of own tables: short forms, defaults filled in, and every fault named with its place."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from equipoise.data.tables.config import (
    CategoriesConfig,
    CategoryConfig,
    CrossConfig,
    NumberConfig,
    TableConfig,
    TaskConfig,
    TimePartConfig,
)
from equipoise.errors import DataError
from equipoise.settings_file import read_settings

ZIP = {"zip": "category"}
VISIT = {"visit": "visit"}


def described(**changes: Any) -> TableConfig:
    return TableConfig(**{"features": ZIP, "tasks": VISIT, **changes})


def faults(**changes: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        described(**changes)
    first, *lines = str(caught.value).splitlines()
    assert first == "The description of the tables (`data` in a settings file) cannot be used."
    return [line.strip() for line in lines]


def test_short_forms_stand_for_long_ones() -> None:
    short = described(time="ts", files="logs/a.csv", tasks={"visit": "seen > 0", "spend": None})
    long = TableConfig(
        time={"column": "ts"},
        files=["logs/a.csv"],
        features={"zip": {"kind": "category"}},
        tasks={"visit": {"label": "seen > 0"}, "spend": {}},
    )
    assert short == long
    assert short.tasks["spend"].label == "spend"


def test_python_objects_stand_for_mappings() -> None:
    objects = described(
        files=Path("logs") / "a.csv",
        features={"zip": CategoryConfig(min_count=2), "age": NumberConfig(column="years")},
        tasks={"visit": TaskConfig(label="seen")},
    )
    mappings = described(
        files=["logs/a.csv"],
        features={"zip": {"kind": "category", "min_count": 2}, "age": {"kind": "number", "column": "years"}},
        tasks={"visit": "seen"},
    )
    assert objects == mappings


def test_a_file_with_every_key_reads_back_as_printed(tmp_path: Path) -> None:
    (tmp_path / "ranker.yaml").write_text(
        """
data:
  name: email-campaign
  files: [logs/*.parquet]
  format: parquet
  null_values: ["", "NA"]
  time: {column: ts, unit: ms}
  user: user_id
  weight: w
  features:
    channel: {kind: category, min_count: 3}
    zip: {kind: category, rows: 1000}
    recency: {kind: number, scale: bins, bins: 16, indicator: true}
    video_id: category
    history: {kind: categories, length: 20, pooling: attention, target: video_id, table: video_id}
    image: {kind: vector, width: 64}
    user_x_zip: {kind: cross, of: [channel, zip], rows: 100000}
    hour: {kind: time, part: hour}
  tasks:
    visit: visit
    long_view: {label: "play_time_ms > 30000"}
    conversion: {after: visit, over: all, positive_weight: 2}
    spend: {kind: regression, loss: log, after: conversion}
  sampled: {task: conversion, rate: 0.1}
  split: {by: user, validation: 0.1, test: 0.1, seed: 3}
  slices: [zip]
  epochs: 2
  batch_size: 512
"""
    )
    config = TableConfig.of(read_settings(tmp_path / "ranker.yaml")["data"])
    assert config.features["history"] == CategoriesConfig(
        column="history", length=20, pooling="attention", target="video_id", table="video_id"
    )
    assert config.tasks["conversion"].positive_weight == 2
    assert TableConfig.of(config.model_dump(mode="json")) == config


def test_defaults_follow_from_the_rest() -> None:
    features = {
        "zip": {"kind": "category", "column": "zip_code"},
        "pair": {"kind": "cross", "of": ["zip", "device"]},
        "hour": {"kind": "time"},
        "sent": {"kind": "time", "column": "sent_at", "part": "weekday"},
    }
    config = described(features=features, time={"column": "ts", "unit": "ms"})
    assert config.features["pair"] == CrossConfig(of=("zip_code", "device"))
    assert config.features["hour"] == TimePartConfig(column="ts", unit="ms")
    assert config.features["sent"] == TimePartConfig(column="sent_at", part="weekday", unit="s")
    assert (config.split.by, described().split.by) == ("time", "random")


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ("logs/campaign.csv.gz", "campaign"),
        ("logs/*.parquet", "logs"),
        ("s3://bucket/views/day=2026-01-01/part-*.parquet", "views"),
        ("./", "own data"),
        ([], "own data"),
    ],
)
def test_the_name_is_that_of_the_files(files: Any, name: str) -> None:
    assert described(files=files).name == name


def test_values_of_a_split_column_are_texts_as_in_tables() -> None:
    values = {"train": [date(2026, 1, 1), 1, 2.0], "validation": True, "test": "c"}
    config = described(split={"by": "column", "column": "fold", "values": values})
    assert config.split.values == {"train": ("2026-01-01", "1", "2"), "validation": ("true",), "test": ("c",)}


def test_every_fault_is_listed_with_its_place() -> None:
    found = faults(
        fils="a.csv",
        features={"zip": {"kind": "category", "min_cout": 3}, "image": {"kind": "vector"}, "age": {}, "day": "categry"},
        tasks={"visit": {"labl": "seen"}},
        time={"colum": "ts"},
        split={"by": "tim"},
        epochs="2",
    )
    assert found == [
        "time.column: is missing: Column of the files.",
        "time.colum: there is no such key; there are column, unit, format; did you mean 'column'?",
        "features.zip.min_cout: there is no such key; there are kind, column, min_count, rows, table; did you mean "
        "'min_count'?",
        "features.image.width: is missing: Numbers per row.",
        "features.age.kind: is missing; expected one of category, number, categories, vector, cross, time",
        "features.day.kind: expected one of category, number, categories, vector, cross, time; found 'categry'; did "
        "you mean 'category'?",
        "tasks.visit.labl: there is no such key; there are kind, label, after, over, loss, positive_weight, "
        "description; did you mean 'label'?",
        "split.by: expected 'time', 'column', 'random' or 'user'; found 'tim'",
        "epochs: expected a valid integer; found '2'",
        "fils: there is no such key; there are name, files, format, separator, null_values, time, user, weight, "
        "features, tasks, sampled, split, slices, user_groups, epochs, batch_size; did you mean 'files'?",
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"features": {"zip": {"kind": "category", "min_count": 3, "rows": 9}}}, "features.zip.rows: goes without"),
        ({"features": {"zip": {"kind": "category", "rows": 1}}}, "features.zip.rows: expected greater than or equal"),
        ({"features": {"age": {"kind": "number", "bins": 4}}}, "features.age.bins: goes with `scale: bins`"),
        ({"features": {"zip": "category", "b": {"kind": "category", "table": "zp"}}},
         "features.b.table: expected a category feature with a table of its own, out of zip; found 'zp'; did you mean"),
        ({"features": {"zip": "category", "b": {"kind": "category", "table": "zip", "min_count": 2}}},
         "features.b.min_count: is set by 'zip'"),
        ({"features": {"zip": "category", "b": {"kind": "categories", "pooling": "attention"}}},
         "features.b.target: is missing"),
        ({"features": {"zip": "category", "b": {"kind": "categories", "target": "zip"}}},
         "features.b.target: goes with `pooling: attention`; found 'mean'"),
        ({"features": {"zip": "category", "b": {"kind": "categories", "pooling": "attention", "target": "b"}}},
         "features.b.target: expected a category feature, out of zip; found 'b'"),
        ({"features": {"visit": "category"}}, "features.visit: a task has this name, too"),
        ({"features": {}}, "features: expected at least 1, found 0"),
        ({"features": ["zip"]}, "features: expected a mapping; found ['zip']"),
        ({"tasks": {"a": {"after": "b"}, "b": {"after": "a"}}}, "tasks.a.after: comes back to itself: b after a"),
        ({"tasks": {"visit": None, "spend": {"after": "vist"}}},
         "tasks.spend.after: expected a binary task, out of visit, spend; found 'vist'; did you mean 'visit'?"),
        ({"tasks": {"visit": {"over": "all"}}}, "tasks.visit.over: goes with `after`"),
        ({"tasks": {"visit": {"loss": "log"}}}, "tasks.visit.loss: goes with `kind: regression`"),
        ({"tasks": {"spend": {"kind": "regression", "positive_weight": 2.0}}}, "tasks.spend.positive_weight: goes"),
        ({"tasks": {"visit": {"positive_weight": float("nan")}}}, "tasks.visit.positive_weight: expected"),
        ({"sampled": {"task": "vist", "rate": 0.1}}, "sampled.task: expected a binary task, out of visit; found"),
        ({"sampled": {"task": "visit", "rate": 0}}, "sampled.rate: expected greater than 0; found 0"),
        ({"split": {"by": "time"}}, "split.by: a split by time needs the key `time`"),
        ({"split": {"by": "user"}}, "split.by: a split by user needs the key `user`"),
        ({"split": {"by": "random", "column": "fold"}}, "split.column: does not go with `by: random`, which takes"),
        ({"time": "ts", "split": {"seed": 3}}, "split.seed: does not go with `by: time`, which takes test and valid"),
        ({"split": {"by": "column"}}, "split.column: is missing"),
        ({"split": {"by": "column", "column": "c", "values": {"train": [1], "test": [1], "validation": []}}},
         "split.values: each value belongs to one split; found twice: 1"),
        ({"split": {"by": "column", "column": "c", "values": {"train": [1]}}}, "split.values: expected values for"),
        ({"split": {"validation": 0.5, "test": 0.5}}, "split.test: validation and test leave no rows for train"),
        ({"files": [3]}, "files.0: expected text (in YAML, put it in quotes); found 3"),
        ({"features": {True: "category"}}, "features.True: expected text (in YAML, put it in quotes); found True"),
        ({"batch_size": 0}, "batch_size: expected greater than or equal to 1; found 0"),
        ({"epochs": True}, "epochs: expected a valid integer; found True"),
    ],
)  # fmt: skip
def test_a_fault_is_named(changes: dict[str, Any], fault: str) -> None:
    (found,) = [line for line in faults(**changes) if not line.startswith("tasks.b.after: comes back")]
    assert found.startswith(fault)


def test_a_section_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(DataError, match=r"as a mapping with files, features and tasks; found \['a.csv'\]"):
        TableConfig.of(["a.csv"])
