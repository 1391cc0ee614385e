"""The embedding of every kind of feature, against a plain computation row by row."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Final

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from equipoise.errors import SettingError
from equipoise.ranking.embedding import FeatureEmbedding
from equipoise.ranking.sharded_embedding import ShardableEmbedding
from equipoise.ranking.target_attention import TargetAttention
from equipoise.schema import PADDING, Categorical, Categories, Numeric, Schema, Task, Vector

TASKS: Final = [Task("click")]
TAGS = Categories("tags", 6, 3, "sum")
POOLED = Schema(
    [
        TAGS,
        Categorical("user", 7),
        Categorical("item", 9),
        Categories("seen", 9, 4, "mean", table="item"),
        Categories("liked.tags", 6, 2, "mean", table="tags"),
        Categorical("last", 9, table="item"),
    ],
    [Numeric("age"), Vector("image", 3), Numeric("price")],
    TASKS,
)
ATTENDED = Schema(
    [*POOLED.categorical, Categories("history", 9, 5, "attention", "item", "item")], POOLED.numeric, TASKS
)
EVERY_SCHEMA = pytest.mark.parametrize("schema", [POOLED, ATTENDED], ids=["pooled", "attended"])


def batch_of(schema: Schema, rows: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Ids with histories of all lengths, none and full ones among them, and some that are missing or unseen."""
    generator = torch.Generator().manual_seed(0)
    columns = []
    for feature in schema.categorical:
        if isinstance(feature, Categorical):
            columns.append(torch.randint(-1, feature.cardinality + 1, (rows, 1), generator=generator))
            continue
        ids = torch.randint(0, feature.cardinality + 1, (rows, feature.length), generator=generator)
        length = torch.arange(rows).remainder(feature.length + 1).unsqueeze(1)
        columns.append(torch.where(torch.arange(feature.length) < length, ids, PADDING))
    return torch.cat(columns, 1), torch.randn(rows, len(schema.numeric_columns), generator=generator, dtype=dtype)


def row_by_row(embedding: FeatureEmbedding, schema: Schema, categorical: Tensor, numeric: Tensor) -> Tensor:
    """The same in plain Python, one row, one feature and one item at a time."""
    owners = [feature for feature in schema.categorical if not feature.table]
    parts = embedding.table.weight.split([owner.cardinality for owner in owners])
    tables = {owner.name: part for owner, part in zip(owners, parts, strict=True)}
    units = iter(embedding.attention)
    unit_of = {f.name: next(units).unit for f in schema.categorical if getattr(f, "pooling", "") == "attention"}
    rows = []
    for ids, numbers in zip(categorical.tolist(), numeric, strict=True):
        value_of = dict(zip(schema.categorical_columns, ids, strict=True))

        def embed(feature: Categorical | Categories, value: int) -> Tensor:
            return tables[feature.table or feature.name][value if 0 <= value < feature.cardinality else 0]

        found = []
        for feature in schema.categorical:
            if isinstance(feature, Categorical):
                found.append(embed(feature, value_of[feature.name]))
                continue
            values = [value_of[f"{feature.name}[{place}]"] for place in range(feature.length)]
            items = [embed(feature, value) for value in values if value != PADDING]
            total = torch.zeros(embedding.dim, dtype=numeric.dtype)
            for item in items:
                weight = 1.0 if feature.pooling == "sum" else 1.0 / len(items)
                if feature.pooling == "attention":
                    first, prelu, last = unit_of[feature.name]
                    target = embed(schema.feature(feature.target), value_of[feature.target])
                    hidden = first.weight @ torch.cat((target, item, target - item, target * item)) + first.bias
                    hidden = torch.where(hidden > 0, hidden, prelu.weight * hidden)
                    weight = last.weight[0] @ hidden + last.bias[0]
                total = total + weight * item
            found.append(total)
        rows.append(torch.cat([*found, numbers]))
    return torch.stack(rows)


@EVERY_SCHEMA
def test_every_kind_is_what_it_is_row_by_row_in_double_precision(schema: Schema) -> None:
    embedding = FeatureEmbedding(schema, 4).double()
    categorical, numeric = batch_of(schema, dtype=torch.float64)
    found = embedding(categorical, numeric)
    expected = row_by_row(embedding, schema, categorical, numeric)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert found.shape == (12, embedding.width)
    parameters = list(embedding.parameters())
    weights = torch.randn(found.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((output * weights).sum(), parameters) for output in (found, expected)]
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-13)


def test_features_that_share_a_table_read_the_rows_of_one_parameter() -> None:
    embedding = FeatureEmbedding(ATTENDED, 4)
    assert embedding.table.weight.shape == (6 + 7 + 9, 4)
    assert embedding.ranges.starts.tolist() == [0, 0, 0, 6, 13, 13, 13, 13, 13, 0, 0, 13, 13, 13, 13, 13, 13]


def test_fields_keeps_the_features_apart() -> None:
    embedding = FeatureEmbedding(ATTENDED, 4)
    categorical, numeric = batch_of(ATTENDED)
    fields, numbers = embedding.fields(categorical, numeric)
    assert fields.shape == (12, 7, 4)
    assert numbers is numeric
    assert torch.equal(torch.cat((fields.flatten(1), numbers), 1), embedding(categorical, numeric))


def test_a_schema_of_numbers_alone_has_no_fields() -> None:
    embedding = FeatureEmbedding(Schema([], POOLED.numeric, TASKS), 4)
    fields, numbers = embedding.fields(torch.empty(2, 0, dtype=torch.int64), torch.ones(2, 5))
    assert fields.shape == (2, 0, 4)
    assert numbers.shape == (2, 5)
    assert embedding.width == 5


@EVERY_SCHEMA
def test_gradients_agree_with_finite_differences(schema: Schema) -> None:
    embedding = FeatureEmbedding(schema, 2).double()
    categorical, numeric = batch_of(schema, rows=6, dtype=torch.float64)
    names = [name for name, _ in embedding.named_parameters()]

    def forward(numbers: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(embedding, dict(zip(names, values, strict=True)), (categorical, numbers))

    assert torch.autograd.gradcheck(forward, (numeric.requires_grad_(), *embedding.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_without_items_gives_zeros_and_moves_nothing(dtype: torch.dtype) -> None:
    schema = Schema(
        [Categorical("item", 9), *(f for f in ATTENDED.categorical if isinstance(f, Categories))], [], TASKS
    )
    embedding = FeatureEmbedding(schema, 4).to(dtype)
    empty = torch.full((3, len(schema.categorical_columns)), PADDING)
    empty[:, 0] = 5
    fields, _ = embedding.fields(empty, torch.empty(3, 0, dtype=dtype))
    assert fields.dtype == dtype
    assert torch.equal(fields[:, 1:], torch.zeros(3, 4, 4, dtype=dtype))
    fields[:, 1:].sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in embedding.parameters())


def test_a_row_0_that_is_not_finite_does_not_reach_the_output_through_padding() -> None:
    schema = Schema(
        [Categories("tags", 6, 3, "sum"), Categories("seen", 6, 3, table="tags"), Categorical("item", 6, "tags"),
         Categories("history", 6, 3, "attention", "item", "tags")], [], TASKS,
    )  # fmt: skip
    embedding = FeatureEmbedding(schema, 4)
    ids = torch.full((1, 10), 3)
    ids[0, [1, 2, 4, 5, 8, 9]] = PADDING
    expected = embedding(ids, torch.empty(1, 0))
    with torch.no_grad():
        embedding.table.weight[0] = torch.nan
    assert torch.equal(embedding(ids, torch.empty(1, 0)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_full(dtype: torch.dtype) -> None:
    embedding = FeatureEmbedding(ATTENDED, 4)
    half = copy.deepcopy(embedding).to(dtype)
    categorical, numeric = batch_of(ATTENDED)
    found = half(categorical, numeric.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), embedding(categorical, numeric), rtol=0.05, atol=0.05)


def test_trains_under_autocast_close_to_full_precision() -> None:
    embedding = FeatureEmbedding(ATTENDED, 4)
    categorical, numeric = batch_of(ATTENDED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = embedding(categorical, numeric)
    torch.testing.assert_close(found.float(), embedding(categorical, numeric), rtol=0.05, atol=0.05)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in embedding.parameters())


def test_an_exported_embedding_gives_the_same_for_other_rows() -> None:
    embedding = FeatureEmbedding(ATTENDED, 4).eval()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(embedding, batch_of(ATTENDED), dynamic_shapes=({0: rows}, {0: rows}))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    other = batch_of(ATTENDED, rows=5)
    assert torch.equal(torch.export.load(file).module()(*other), embedding(*other))


def test_compiles_as_one_graph_with_the_same_output_and_gradients() -> None:
    torch.compiler.reset()
    embedding = FeatureEmbedding(ATTENDED, 4)
    twin = copy.deepcopy(embedding)
    run: Callable[..., Tensor] = torch.compile(twin, fullgraph=True, backend="aot_eager")
    batch = batch_of(ATTENDED)
    found, expected = run(*batch), embedding(*batch)
    torch.testing.assert_close(found, expected)
    for output in (found, expected):
        output.square().sum().backward()
    for parameter, other in zip(twin.parameters(), embedding.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_no_step_waits_for_the_device() -> None:
    with FakeTensorMode():  # under which tensors have no values
        embedding = FeatureEmbedding(ATTENDED, 3)
        ids = torch.randint(0, 1, (4, len(ATTENDED.categorical_columns)))
        embedding(ids, torch.randn(4, 5)).sum().backward()


def test_sparse_gradients_equal_the_dense_ones() -> None:
    sparse, dense = FeatureEmbedding(ATTENDED, 3, sparse=True), FeatureEmbedding(ATTENDED, 3)
    dense.load_state_dict(sparse.state_dict())
    batch = batch_of(ATTENDED)
    for embedding in (sparse, dense):
        embedding(*batch).square().sum().backward()
    assert sparse.table.weight.grad.is_sparse
    torch.testing.assert_close(sparse.table.weight.grad.to_dense(), dense.table.weight.grad)


def test_attention_learns_which_items_bear_on_the_target() -> None:
    """The label says whether the target is in the history: no pooling that ignores the target can tell."""
    torch.manual_seed(0)
    rows, items = 2000, 12
    target = torch.randint(1, items, (rows, 1))
    history = torch.rand(rows, items - 1).argsort(1)[:, :4] + 1
    history[::2, 0] = target[::2, 0]
    labels = (history == target).any(1).float()
    losses = {}
    for pooling in ("mean", "attention"):
        aim = "item" if pooling == "attention" else ""
        schema = Schema([Categorical("item", items), Categories("history", items, 4, pooling, aim, "item")], [], TASKS)
        net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
        embedding = FeatureEmbedding(schema, 8)
        optimizer = torch.optim.Adam([*embedding.parameters(), *net.parameters()], lr=0.01)
        for _ in range(150):
            logits = net(embedding(torch.cat((target, history), 1), torch.empty(rows, 0)))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[pooling] = loss.item()
    assert losses["attention"] < 0.1
    assert losses["mean"] > 0.2


def test_the_unit_has_the_width_of_the_paper() -> None:
    first, prelu, last = TargetAttention(8).unit
    assert (first.in_features, first.out_features, last.out_features) == (32, 36, 1)
    assert isinstance(prelu, nn.PReLU)


def test_sharded_tables_pool_as_the_plain_ones_do() -> None:
    pytest.importorskip("torchrec")
    embedding = FeatureEmbedding(POOLED, 4)
    sharded = ShardableEmbedding(embedding)
    batch = batch_of(POOLED)
    torch.testing.assert_close(sharded(*batch), embedding(*batch))
    torch.testing.assert_close(sharded.fields(*batch)[0], embedding.fields(*batch)[0])
    assert [config.num_embeddings for config in sharded.tables.embedding_bag_configs()] == [6, 7, 9]
    for found in (sharded, embedding):
        found(*batch).square().sum().backward()
    gradients = [sharded.tables.embedding_bags[name].weight.grad for name in sharded.tables.embedding_bags]
    torch.testing.assert_close(torch.cat(gradients), embedding.table.weight.grad)


def test_sharded_tables_refuse_target_attention_with_what_to_do() -> None:
    pytest.importorskip("torchrec")
    with pytest.raises(SettingError, match=r"'history': target attention .* Use pooling mean or sum, or sharding ddp"):
        ShardableEmbedding(FeatureEmbedding(ATTENDED, 4))
