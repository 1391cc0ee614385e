"""The embedding: the right rows, the right order, every kind of schema."""

from __future__ import annotations

import pytest
import torch

from equipoise.ranking.embedding import FeatureEmbedding
from equipoise.schema import Categorical, Numeric, Schema, Task

MIXED = Schema(
    [Categorical("user", 7), Categorical("item", 1), Categorical("store", 4)],
    [Numeric("price"), Numeric("age")],
    [Task("click")],
)


def test_every_feature_reads_its_own_rows_and_numbers_come_last() -> None:
    embedding = FeatureEmbedding(MIXED, 3)
    rows = embedding.table.weight
    ids = torch.tensor([[6, 0, 0], [0, 0, 3]])
    numbers = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    expected = torch.stack(
        [
            torch.cat((rows[6], rows[7], rows[8], numbers[0])),
            torch.cat((rows[0], rows[7], rows[11], numbers[1])),
        ]
    )
    assert len(rows) == 7 + 1 + 4
    assert embedding.width == 3 * 3 + 2
    assert torch.equal(embedding(ids, numbers), expected)


def test_a_schema_of_numbers_alone_passes_them_on_and_has_no_parameters() -> None:
    embedding = FeatureEmbedding(Schema([], MIXED.numeric, MIXED.tasks), 3)
    numbers = torch.randn(5, 2)
    assert torch.equal(embedding(torch.empty(5, 0, dtype=torch.int64), numbers), numbers)
    assert embedding.width == 2
    assert list(embedding.parameters()) == []


def test_a_schema_of_ids_alone_gives_embeddings_alone() -> None:
    embedding = FeatureEmbedding(Schema(MIXED.categorical, [], MIXED.tasks), 3)
    assert embedding(torch.zeros(5, 3, dtype=torch.int64), torch.empty(5, 0)).shape == (5, 9)


@pytest.mark.parametrize("dim", [4, 16])
def test_rows_start_normal_with_a_mean_squared_norm_of_one(dim: int) -> None:
    torch.manual_seed(0)
    table = FeatureEmbedding(Schema([Categorical("user", 40_000)], [], MIXED.tasks), dim).table.weight
    assert table.square().sum(1).mean().item() == pytest.approx(1, rel=0.02)
    assert table.mean().item() == pytest.approx(0, abs=0.005)
    assert (table.abs() < 2 * dim**-0.5).double().mean().item() == pytest.approx(0.9545, abs=0.005)


def test_sparse_gradients_hold_the_rows_that_were_read_and_equal_the_dense_ones() -> None:
    ids, numbers = torch.tensor([[6, 0, 0], [6, 0, 3]]), torch.zeros(2, 2)
    sparse, dense = FeatureEmbedding(MIXED, 3, sparse=True), FeatureEmbedding(MIXED, 3)
    dense.load_state_dict(sparse.state_dict())
    for embedding in (sparse, dense):
        embedding(ids, numbers).square().sum().backward()
    gradient = sparse.table.weight.grad
    assert gradient.is_sparse
    assert set(gradient.coalesce().indices()[0].tolist()) == {6, 7, 8, 11}
    torch.testing.assert_close(gradient.to_dense(), dense.table.weight.grad)


def test_offsets_stay_whole_numbers_when_the_module_is_cast() -> None:
    embedding = FeatureEmbedding(MIXED, 3).bfloat16()
    assert embedding.offsets.tolist() == [0, 7, 8]
    assert embedding.offsets.dtype == torch.int64


def test_a_schema_without_features_and_a_width_under_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one feature, found a schema without any"):
        FeatureEmbedding(Schema([], [], MIXED.tasks), 3)
    with pytest.raises(ValueError, match="dimension must be at least 1, found 0"):
        FeatureEmbedding(MIXED, 0)
