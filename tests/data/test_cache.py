"""The cache returns what was built, never a part of it, and survives any files in its folder."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.data.cache import cache_folder, cached, read_dataset, write_dataset
from equipoise.data.dataset import Dataset, Split
from equipoise.schema import Categorical, Categories, Numeric, Sampled, Schema, Task, Vector


def make_dataset(seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)

    def split(rows: int) -> Split:
        labels = torch.randint(2, (rows, 2), generator=generator).float()
        labels[0, 1] = torch.nan
        return Split(
            torch.randint(5, (rows, 4), generator=generator, dtype=torch.int32),
            torch.randn(rows, 3, generator=generator),
            labels,
            torch.rand(rows, generator=generator),
            torch.rand(rows, generator=generator),
            {"user": torch.arange(rows) + 10**12, "day": torch.arange(rows) % 2},
        )

    schema = Schema(
        (Categorical("user", 5), Categories("history", 5, 2), Categorical("ad", 5)),
        (Numeric("age"), Vector("image", 2)),
        (Task("click", "clicked"), Task("like", after="click", over="all", positive_weight=2.0)),
        Sampled("click", 0.25),
    )
    return Dataset(
        "toy", schema, split(7), split(3), split(4), notes=("a", "b°"), best_ne={"click": 0.5},
        epochs=3, batch_size=64, licence="CC BY 4.0", source="https://example.com",
        group="user", values={"day": ["Monday", "Tuesday"]}, slices=("day", "ad"), user_groups=("day",),
    )  # fmt: skip


def assert_same(one: Dataset, other: Dataset) -> None:
    for entry in fields(Dataset):
        if entry.name not in ("train", "validation", "test"):
            assert getattr(one, entry.name) == getattr(other, entry.name), entry.name
    for name in ("train", "validation", "test"):
        assert getattr(one, name).keys.keys() == getattr(other, name).keys.keys()
        for key, codes in getattr(one, name).keys.items():
            assert torch.equal(getattr(other, name).keys[key], codes)
        for part in ("categorical", "numeric", "labels", "weight", "importance"):
            expected, found = getattr(getattr(one, name), part), getattr(getattr(other, name), part)
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))


class Builder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Dataset:
        self.calls += 1
        return make_dataset()


def test_a_data_set_comes_back_as_it_was_written(tmp_path: Path) -> None:
    dataset = make_dataset()
    write_dataset(dataset, tmp_path / "new" / "set.parquet")
    assert_same(dataset, read_dataset(tmp_path / "new" / "set.parquet"))


def test_it_is_built_once_per_options_and_version(tmp_path: Path) -> None:
    build = Builder()
    first = cached("toy", {"rows": 5}, build, version="1")
    assert_same(first, cached("toy", {"rows": 5}, build, version="1"))
    assert build.calls == 1
    cached("toy", {"rows": 6}, build, version="1")
    cached("toy", {"rows": 5}, build, version="2")
    cached("toys", {"rows": 5}, build, version="1")
    assert build.calls == 4
    assert len(list(tmp_path.iterdir())) == 4


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_other_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def drop_a_column(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["number:age"]), path)


def drop_rows(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize("damage", [truncate, empty, replace_by_other_parquet, drop_a_column, drop_rows])
def test_a_broken_file_is_built_anew_with_a_warning(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = Builder()
    cached("toy", {}, build, version="1")
    (path,) = tmp_path.iterdir()
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert_same(make_dataset(), cached("toy", {}, build, version="1"))
    assert build.calls == 2
    assert "building it again" in caplog.text
    cached("toy", {}, build, version="1")
    assert build.calls == 2


def test_a_cache_that_cannot_be_written_costs_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "file" / "cache"))
    dataset = cached("toy", {}, Builder(), version="1")
    assert_same(make_dataset(), dataset)
    assert "EQUIPOISE_CACHE" in caplog.text


def test_an_error_while_building_leaves_nothing(tmp_path: Path) -> None:
    def build() -> Dataset:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached("toy", {}, build, version="1")
    assert not list(tmp_path.iterdir())


def test_the_folder_is_that_of_the_variable_else_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "variable"))
    assert cache_folder() == tmp_path / "variable"
    monkeypatch.delenv("EQUIPOISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder().name == "equipoise"


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["age", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "name",
    "rows",
    "schema",
    "notes",
    "best_ne",
    "epochs",
    "batch_size",
    "licence",
    "source",
    "group",
    "slices",
    "user_groups",
    "keys",
)
PLACES = [*FIELDS, ("schema", "categorical"), ("schema", "numeric"), ("schema", "tasks"), ("rows", 0)]


@given(st.sampled_from([*PLACES, None]), ANYTHING)
@settings(
    max_examples=300, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_whatever_a_files_description_says_it_is_read_or_built_anew(
    tmp_path: Path, place: object, value: object
) -> None:
    path = tmp_path / "set.parquet"
    write_dataset(make_dataset(), path)
    table = pq.read_table(path)
    description = json.loads(table.schema.metadata[b"equipoise"])
    if place is None:
        description = value
    elif isinstance(place, tuple):
        description[place[0]][place[1]] = value
    else:
        description[place] = value
    text = json.dumps(description).encode()
    pq.write_table(table.replace_schema_metadata({b"equipoise": text}), path)
    try:
        found = read_dataset(path)
    except (OSError, ValueError, KeyError, TypeError):  # what `cached` takes as a reason to build anew
        return
    assert sum(len(split) for split in (found.train, found.validation, found.test)) == table.num_rows
    assert all(isinstance(name, str) for name in (found.name, *found.schema.task_names, *found.notes))
