"""The summary of a data set counts what is there, and warns of what will hurt."""

from __future__ import annotations

import torch

from equipoise.data import Dataset, Split
from equipoise.data.summary import summarise
from equipoise.schema import Categorical, Categories, Numeric, Schema, Task

SCHEMA = Schema(
    [Categorical("user", 50), Categories("history", 50, 2, table="user")],
    [Numeric("age")],
    [Task("click"), Task("buy")],
)


def rows(count: int, *, unseen: float = 0.0, clicks: int | None = None) -> Split:
    """Return a split in which a share of the users is unseen and so many rows have a click."""
    user = torch.arange(count, dtype=torch.int32) % 49 + 1
    user[: int(unseen * count)] = 0
    history = torch.stack([user, torch.full_like(user, -1)], dim=1)
    history[: count // 4] = -1
    click = torch.zeros(count)
    click[: count // 2 if clicks is None else clicks] = 1
    buy = torch.where(click == 1, 0.0, torch.nan)
    buy[: count // 4] = 1
    return Split(
        torch.cat([user[:, None], history], dim=1),
        torch.zeros(count, 1),
        torch.stack([click, buy], 1),
        torch.ones(count),
    )


def test_labels_are_counted_in_each_split() -> None:
    found = {(entry.task.name, entry.split): entry for entry in summarise(_dataset()).tasks}
    assert (found["click", "train"].labelled, found["click", "train"].positives) == (2000, 1000)
    assert (found["buy", "test"].labelled, found["buy", "test"].positives) == (400, 200)
    assert found["buy", "test"].rate == 0.5


def test_unseen_values_and_empty_lists_are_counted() -> None:
    found = {feature.name: feature for feature in summarise(_dataset(unseen=0.3)).features}
    assert found["user"].unknown == {"train": 0.0, "validation": 0.3, "test": 0.3}
    assert found["history"].unknown["train"] == 0.25
    assert found["age"].kind == "number"
    assert "table of user" in found["history"].kind


def test_unseen_values_in_the_test_rows_are_warned_of() -> None:
    assert any("user" in warning and "unseen" in warning for warning in summarise(_dataset(unseen=0.3)).warnings)
    assert not summarise(_dataset()).warnings


def test_few_positives_are_warned_of() -> None:
    few = Dataset("few", SCHEMA, rows(2000), rows(800), rows(800, clicks=12))
    assert any("click: 12 positives in the test split" in warning for warning in summarise(few).warnings)


def _dataset(unseen: float = 0.0) -> Dataset:
    return Dataset("made up", SCHEMA, rows(2000), rows(800, unseen=unseen), rows(800, unseen=unseen))
