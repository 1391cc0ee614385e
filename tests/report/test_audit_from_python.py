"""An audit from Python takes objects, and answers in sentences."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor, nn

import equipoise
from equipoise.data import DataError, Dataset, load
from equipoise.schema import Schema


class Linear(nn.Module):
    """A model of this module: one layer, a head per task, and a place for the fork."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.layer = nn.Linear(len(schema.numeric_columns), 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in schema.tasks)

    def representation(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        return torch.relu(self.layer(numeric))

    def forward(self, categorical: Tensor, numeric: Tensor) -> list[Tensor]:
        return [head(self.representation(categorical, numeric)).squeeze(1) for head in self.heads]


@pytest.fixture(scope="module")
def funnel() -> Dataset:
    return load("funnel", rows=1500)


def test_a_data_set_in_memory_and_an_own_class_are_audited(funnel: Dataset, tmp_path: Path) -> None:
    said = equipoise.audit(funnel, model=Linear, lr=0.01, batch_size=512, seeds=1, trials=1, jobs=1, out=tmp_path)
    assert said[0].startswith("Too few seeds to advise")
    assert len(said) > 1
    assert "Linear" in (tmp_path / "audit.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("call", ["audit", "compare", "train"])
def test_a_table_in_place_of_a_data_set_is_told_where_to_go(call: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found a DataFrame\. A table .* becomes a data set with .*from_frame"):
        getattr(equipoise, call)(pl.DataFrame({"click": [0, 1]}), out=tmp_path)
