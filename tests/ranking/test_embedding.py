"""The embedding: the right rows, the right order, every kind of schema."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from equipoise.ranking.embedding import FeatureEmbedding, IdRanges, Table
from equipoise.ranking.sharded_embedding import ShardableEmbedding
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


@pytest.mark.parametrize("wrong", [-1, -5, 7, 8, 10_000, 2**40, -(2**40)])
def test_an_id_out_of_range_reads_its_own_features_row_of_missing_and_unseen_values(wrong: int) -> None:
    embedding, numbers = FeatureEmbedding(MIXED, 3), torch.zeros(2, 2)
    found = embedding(torch.tensor([[wrong, 0, 3], [6, wrong, 3]]), numbers)
    assert torch.equal(found, embedding(torch.tensor([[0, 0, 3], [6, 0, 3]]), numbers))
    found.sum().backward()
    assert embedding.table.weight.grad[[0, 6, 7, 11]].ne(0).all()
    assert embedding.table.weight.grad[[1, 2, 3, 4, 5, 8, 9, 10]].eq(0).all()


def test_every_id_in_range_is_read_as_it_is() -> None:
    embedding = FeatureEmbedding(MIXED, 3)
    ids = torch.cartesian_prod(*(torch.arange(feature.cardinality) for feature in MIXED.categorical))
    starts = torch.tensor([0, 7, 8])
    expected = embedding.table.weight[ids + starts].flatten(1)
    assert torch.equal(embedding(ids, torch.empty(len(ids), 0)), expected)


def test_no_step_waits_for_the_device() -> None:
    with FakeTensorMode():  # under which tensors have no values
        embedding = FeatureEmbedding(MIXED, 3)
        embedding(torch.randint(0, 1, (4, 3)), torch.randn(4, 2)).sum().backward()


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.bfloat16(),
        lambda module: copy.deepcopy(module.double()),
        lambda module: module.to("meta").to_empty(device="cpu"),
        lambda module: pickle.loads(pickle.dumps(module)),
    ],
    ids=["half", "copy", "to_empty", "pickle"],
)
def test_ranges_stay_what_they_are_whatever_happens_to_the_module(change: Callable[[nn.Module], nn.Module]) -> None:
    embedding = change(FeatureEmbedding(MIXED, 3))
    assert embedding.ranges.starts.tolist() == [0, 7, 8]
    assert embedding.ranges.starts.dtype == torch.int64
    ids = torch.tensor([[6, 0, 3], [7, 1, 4]])
    assert embedding.ranges(ids).tolist() == [[6, 0, 3], [0, 0, 0]]


def test_a_module_made_on_the_meta_device_finds_its_rows() -> None:
    with torch.device("meta"):
        embedding = FeatureEmbedding(MIXED, 3)
    assert embedding.to_empty(device="cpu").ranges.starts.tolist() == [0, 7, 8]


def test_an_average_over_steps_reads_the_same_rows_of_tables_that_float32_cannot_count() -> None:
    # AveragedModel averages all buffers in float32, which counts to 16,777,216.
    schema = Schema([Categorical("user", 20_000_001), Categorical("item", 3)], [], MIXED.tasks)
    model = nn.Sequential(IdRanges(schema.categorical), nn.BatchNorm1d(2))
    averaged = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    for _ in range(3):
        averaged.update_parameters(model)
    assert averaged.module[0].starts.tolist() == [0, 20_000_001]
    assert averaged.module[0](torch.tensor([[20_000_000, 2]])).tolist() == [[20_000_000, 2]]


def test_sharded_tables_read_the_same_rows_of_ids_out_of_range() -> None:
    pytest.importorskip("torchrec")
    embedding = FeatureEmbedding(MIXED, 4)
    ids, numbers = torch.tensor([[-1, 0, 3], [7, 5, 4], [6, 0, 0]]), torch.randn(3, 2)
    found = ShardableEmbedding(embedding)(ids, numbers)
    torch.testing.assert_close(found, embedding(ids, numbers))


def test_a_schema_without_features_and_a_width_under_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one feature, found a schema without any"):
        FeatureEmbedding(Schema([], [], MIXED.tasks), 3)
    with pytest.raises(ValueError, match="dimension must be at least 1, found 0"):
        FeatureEmbedding(MIXED, 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dim", [4, 16])
def test_a_table_gives_output_and_gradient_of_an_embedding_to_the_bit(threads: int, dim: int) -> None:
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    table, plain = Table(3000, dim), nn.Embedding(3000, dim)
    plain.load_state_dict(table.state_dict())
    ids = (torch.rand(2048, 9, generator=generator) ** 3 * 3000).long()  # some rows often
    gradient = torch.randn(2048, 9, dim, generator=generator)
    torch.set_num_threads(threads)
    try:
        outputs = [part(ids) for part in (table, plain)]
        for output in outputs:
            output.backward(gradient)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outputs)
    assert table.weight.grad is not None
    assert plain.weight.grad is not None
    assert torch.equal(table.weight.grad, plain.weight.grad)


def test_a_table_adds_up_the_gradient_of_all_rows_in_one_operation() -> None:
    table = Table(9, 4)
    ids = torch.tensor([[3, 5]])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        table(ids).sum().backward()
    found = {event.key for event in profiler.key_averages()}
    assert "aten::index_add_" in found or "aten::index_add" in found
    assert "aten::embedding_dense_backward" not in found


def test_a_table_with_sparse_gradients_and_one_in_eval_mode_are_embeddings() -> None:
    ids = torch.tensor([[3, 5], [3, 0]])
    table = Table(9, 4, sparse=True)
    table(ids).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    exported = torch.export.export(Table(9, 4).eval(), (ids,))
    assert [node.target for node in exported.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.embedding.default
    ]
