"""The page about a data set shows what a closer look at the rows would find."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equipoise.data import Dataset, Split
from equipoise.report.data_facts import by_day, features_of, label_overlaps
from equipoise.report.data_page import write_data_page
from equipoise.schema import Categorical, Categories, Numeric, Schema, Task, Vector

SCHEMA = Schema(
    [Categorical("store", 12), Categories("history", 30, 3)],
    [Numeric("price"), Numeric("answer"), Vector("image", 2)],
    [Task("click"), Task("buy", over="all")],
)


def rows(count: int, seed: int, *, shift: int = 0) -> Split:
    """Return rows in which ``answer`` tells the click, and the stores of later rows are others."""
    generator = torch.Generator().manual_seed(seed)
    click = (torch.rand(count, generator=generator) < 0.3).float()
    buy = click * (torch.rand(count, generator=generator) < 0.5)
    store = (torch.randint(1, 6, (count, 1), generator=generator) + shift).int()
    history = torch.randint(-1, 30, (count, 3), generator=generator, dtype=torch.int32)
    numbers = torch.randn(count, 4, generator=generator)
    numbers[:, 1] += 9 * click
    day = {"day": 20_000 + torch.arange(count) * 5 // count}
    return Split(torch.cat([store, history], 1), numbers, torch.stack([click, buy], 1), torch.ones(count), keys=day)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("made <b>up</b>", SCHEMA, rows(4000, 0), rows(800, 1), rows(1600, 2, shift=5))


def test_a_feature_that_holds_the_answer_has_an_auc_near_one(dataset: Dataset) -> None:
    found = {feature.name: feature for feature in features_of(dataset)}
    assert found["answer"].auc["click"] > 0.99
    assert abs(found["price"].auc["click"] - 0.5) < 0.05
    assert "image" not in found


def test_an_id_without_meaning_has_no_auc_by_chance() -> None:
    # 2,000 ids for 4,000 rows: scored by their own rows they would seem to tell everything
    schema = Schema([Categorical("row", 2001)], [], [Task("click")])
    labels = (torch.rand(4000, 1, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    ids = torch.randint(0, 2001, (4000, 1), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    split = Split(ids, torch.empty(4000, 0), labels, torch.ones(4000))
    (found,) = features_of(Dataset("noise", schema, split, split, split))
    assert abs(found.auc["click"] - 0.5) < 0.05


def test_drift_is_one_where_train_and_test_share_no_value(dataset: Dataset) -> None:
    found = {feature.name: feature for feature in features_of(dataset)}
    assert found["store"].drift == pytest.approx(1)
    assert found["price"].drift < 0.1


def test_overlaps_are_shares_of_the_positives(dataset: Dataset) -> None:
    found = {(entry.task, entry.other): entry for entry in label_overlaps(dataset)}
    assert found["buy", "click"].share == 1
    labels = dataset.train.labels
    assert found["click", "buy"].share == pytest.approx(float(labels[labels[:, 0] == 1, 1].mean()))


def test_days_count_all_splits(dataset: Dataset) -> None:
    days = by_day(dataset)
    assert [entry.day.isoformat() for entry in days][:2] == ["2024-10-04", "2024-10-05"]
    assert sum(entry.rows for entry in days) == 6400
    bare = replace(dataset, train=replace(dataset.train, keys={}))
    assert by_day(bare) == []


def test_the_page_says_what_stands_out_and_escapes_names(dataset: Dataset, tmp_path: Path) -> None:
    page = write_data_page(dataset, tmp_path / "data.html").read_text()
    assert "answer predicts click almost alone" in page
    assert "store differs between train and test" in page
    assert "positives of buy in the train rows have click = 1" in page
    assert "<b>up</b>" not in page
    assert "https://" not in page.partition("<script>")[0]


def test_a_task_without_labels_makes_no_page_fail(dataset: Dataset, tmp_path: Path) -> None:
    empty = replace(dataset.train, labels=dataset.train.labels.clone().fill_(torch.nan))
    page = write_data_page(replace(dataset, train=empty), tmp_path / "data.html").read_text()
    assert "no row of the train split has a label" in page
    assert all(
        math.isnan(found) for feature in features_of(replace(dataset, train=empty)) for found in feature.auc.values()
    )
