"""Each interaction against its published formula, and what all of them have in common."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.forks.fork import Fork
from equipoise.ranking.embedding import FeatureEmbedding
from equipoise.ranking.interactions import DLRM, FM, INTERACTIONS, DCNv2, MaskNet, build_input, register
from equipoise.ranking.interactions.numeric_fields import NumericFields
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import ForkFactory, RankingModel, build_model
from equipoise.ranking.sharded_embedding import ShardableEmbedding
from equipoise.schema import Batch, Categorical, Categories, Numeric, Schema, Task, Vector
from tests.ranking.models.cuts import assert_cut_is_right, assert_partition_is_true, make_batch
from tests.ranking.models.samples import every_model, make

SCHEMA = Schema(
    [Categorical("user", 7), Categorical("item", 9), Categories("history", 9, 3, "attention", "item", "item")],
    [Numeric("age"), Vector("image", 3), Numeric("price"), Numeric("hour")],
    [Task("click"), Task("buy")],
)
IDS_ALONE = Schema(SCHEMA.categorical, [], SCHEMA.tasks)
NUMBERS_ALONE = Schema([], SCHEMA.numeric, SCHEMA.tasks)
OWN = ["dlrm", "dcn-v2", "dcn-v2:layers=3,rank=2", "fm", "masknet:blocks=3,block=5,reduction=3"]
every_interaction = pytest.mark.parametrize("interaction", OWN)
DOUBLE = torch.float64


def fields_and_numbers(schema: Schema = SCHEMA, dim: int = 4, rows: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(rows, len(schema.categorical), dim, generator=generator, dtype=DOUBLE)
    return fields, torch.randn(rows, len(schema.numeric_columns), generator=generator, dtype=DOUBLE)


def double(built: nn.Module) -> nn.Module:
    """The module in double precision, with values in the place of initial zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    for parameter in built.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
    return built


def numeric_fields(weight: Tensor, numbers: Tensor) -> Tensor:
    """age, image (three columns), price, hour: x v, one row at a time."""
    rows = []
    for x in numbers:
        of = [x[column] * weight[column] for column in range(6)]
        rows.append(torch.stack([of[0], of[1] + of[2] + of[3], of[4], of[5]]))
    return torch.stack(rows)


def test_dlrm_is_the_bottom_networks_output_and_the_product_of_every_pair() -> None:
    fields, numbers = fields_and_numbers()
    model = double(DLRM(SCHEMA, 4, bottom=(3,)))
    first, second = model.bottom[0], model.bottom[2]
    expected = []
    for row, x in zip(fields, numbers, strict=True):
        hidden = (first.weight @ x + first.bias).clamp(min=0)
        dense = (second.weight @ hidden + second.bias).clamp(min=0)
        vectors = [dense, *row]
        pairs = [vectors[i] @ vectors[j] for i in range(4) for j in range(i + 1, 4)]
        expected.append(torch.cat([dense, torch.stack(pairs)]))
    torch.testing.assert_close(model.interact(fields, numbers), torch.stack(expected))


def test_dlrm_without_numbers_is_the_products_alone() -> None:
    fields, numbers = fields_and_numbers(IDS_ALONE)
    expected = torch.stack([(fields[:, i] * fields[:, j]).sum(1) for i, j in ((0, 1), (0, 2), (1, 2))], 1)
    torch.testing.assert_close(DLRM(IDS_ALONE, 4).interact(fields, numbers), expected)


@pytest.mark.parametrize(
    "schema", [NUMBERS_ALONE, Schema(SCHEMA.categorical[:1], [], SCHEMA.tasks)], ids=["numbers", "one"]
)
def test_dlrm_without_a_pair_is_refused(schema: Schema) -> None:
    with pytest.raises(ValueError, match="expected two categorical features, or one and numbers, found"):
        DLRM(schema, 4)


@pytest.mark.parametrize("rank", [0, 2])
def test_dcn_v2_multiplies_the_input_with_a_linear_map_of_the_layer_below(rank: int) -> None:
    fields, numbers = fields_and_numbers()
    model = double(DCNv2(SCHEMA, 4, layers=3, rank=rank))
    expected = []
    for row, x in zip(fields, numbers, strict=True):
        start = below = torch.cat([row.flatten(), x])
        for layer in model.layers:
            if rank:
                low, high = layer.map
                assert low.weight.shape == (2, len(start))
                mapped = high.weight @ (low.weight @ below) + high.bias
            else:
                mapped = layer.map.weight @ below + layer.map.bias
            below = start * mapped + below
        expected.append(below)
    torch.testing.assert_close(model.interact(fields, numbers), torch.stack(expected))


def test_fm_sums_to_the_second_order_term_of_rendle() -> None:
    fields, numbers = fields_and_numbers()
    model = double(FM(SCHEMA, 4))
    found = model.interact(fields, numbers)
    assert torch.equal(found[:, :-4], torch.cat([fields.flatten(1), numbers], 1))
    every = torch.cat([fields, numeric_fields(model.numbers.weight, numbers)], 1)
    pairs = list(itertools.combinations(range(7), 2))
    torch.testing.assert_close(found[:, -4:], sum(every[:, i] * every[:, j] for i, j in pairs))


def test_fm_sums_to_equation_1_of_rendle_over_one_hot_columns() -> None:
    schema = Schema(SCHEMA.categorical[:2], SCHEMA.numeric, SCHEMA.tasks)
    model = double(FM(schema, 4))
    batch = make_batch(schema)
    vectors = torch.cat([model.features.table.weight, model.numbers.weight])
    for ids, numbers, found in zip(
        batch.categorical, batch.numeric.double(), model(batch.categorical, batch.numeric.double()), strict=True
    ):
        x = torch.cat([torch.zeros(16, dtype=DOUBLE), numbers])
        x[ids + torch.tensor([0, 7])] = 1
        pairs = itertools.combinations(range(len(x)), 2)
        # The columns of one vector feature make one field: their pairs are its own matter.
        expected = sum(vectors[i] @ vectors[j] * x[i] * x[j] for i, j in pairs if not {i, j} <= {17, 18, 19})
        torch.testing.assert_close(found[-4:].sum(), expected)


def test_masknet_is_its_formula_row_by_row() -> None:
    fields, numbers = fields_and_numbers()
    model = double(MaskNet(SCHEMA, 4, blocks=3, block=5, reduction=3))
    numeric = numeric_fields(model.numbers.weight, numbers)
    expected = []

    def normalise(x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()

    for row, x in zip(fields, numeric, strict=True):
        vectors = torch.cat([row, x])
        embedded = torch.cat([
            normalise(v) * gain + bias for v, gain, bias in zip(vectors, model.gain, model.bias, strict=True)
        ])  # fmt: skip
        for block in model.blocks:
            first, second = block.mask[0], block.mask[2]
            assert first.weight.shape == (3 * 28, 28)
            mask = second.weight @ (first.weight @ vectors.flatten() + first.bias).clamp(min=0) + second.bias
            linear, norm = block.layer[0], block.layer[1]
            expected.append((normalise(linear.weight @ (mask * embedded)) * norm.weight + norm.bias).clamp(min=0))
    torch.testing.assert_close(model.interact(fields, numbers), torch.stack(expected).view(5, 15))


def test_a_vector_feature_is_one_field_and_none_longer_than_others_at_the_start() -> None:
    torch.manual_seed(0)
    schema = Schema([], [Numeric("age"), Vector("image", 400)], SCHEMA.tasks)
    found = NumericFields(schema, 2000)(torch.ones(1, 401))
    assert found.shape == (1, 2, 2000)
    assert found.square().sum(2)[0].tolist() == pytest.approx([1, 1], rel=0.15)


@every_interaction
@pytest.mark.parametrize("schema", [SCHEMA, IDS_ALONE, NUMBERS_ALONE], ids=["mixed", "ids", "numbers"])
def test_the_width_is_that_of_the_output_for_every_kind_of_schema(interaction: str, schema: Schema) -> None:
    if interaction == "dlrm" and schema is NUMBERS_ALONE:
        pytest.skip("DLRM needs pairs")
    built, batch = build_input(schema, embedding_dim=4, interaction=interaction), make_batch(schema)
    found = built(batch.categorical, batch.numeric)
    assert found.shape == (16, built.width)
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in built.parameters())


@every_interaction
def test_gradients_agree_with_finite_differences(interaction: str) -> None:
    built = build_input(SCHEMA, embedding_dim=2, interaction=interaction).double()
    batch = make_batch(SCHEMA, rows=4)
    names = [name for name, _ in built.named_parameters()]

    def forward(numbers: Tensor, *values: Tensor) -> Tensor:
        arguments = (batch.categorical, numbers)
        return torch.func.functional_call(built, dict(zip(names, values, strict=True)), arguments)

    assert torch.autograd.gradcheck(
        forward, (batch.numeric.double().requires_grad_(), *built.parameters()), fast_mode=True
    )


@every_interaction
def test_an_exported_input_gives_the_same_for_other_rows(interaction: str) -> None:
    built = build_input(SCHEMA, embedding_dim=4, interaction=interaction).eval()
    some, other = make_batch(SCHEMA), make_batch(SCHEMA, rows=7)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(built, (some.categorical, some.numeric), dynamic_shapes=({0: rows}, {0: rows}))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    found = torch.export.load(file).module()(other.categorical, other.numeric)
    assert torch.equal(found, built(other.categorical, other.numeric))


@every_interaction
def test_half_precision_is_close_to_full_under_autocast(interaction: str) -> None:
    torch.manual_seed(0)
    built, batch = build_input(SCHEMA, embedding_dim=4, interaction=interaction), make_batch(SCHEMA)
    expected = built(batch.categorical, batch.numeric)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = built(batch.categorical, batch.numeric)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in built.parameters())


@every_interaction
@pytest.mark.parametrize("name", ["shared-bottom", "mmoe", "ple"])
def test_underneath_every_model_the_fork_still_stands_right(name: str, interaction: str) -> None:
    def build(fork: ForkFactory | None) -> RankingModel:
        torch.manual_seed(0)
        return build_model(name, SCHEMA, fork=fork, embedding_dim=4, interaction=interaction)

    batch = make_batch(SCHEMA)
    assert_partition_is_true(build(None), batch)
    assert_cut_is_right(build, batch)


XOR = Schema([Categorical("user", 3), Categorical("item", 3)], [], [Task("click"), Task("buy")])


@pytest.mark.parametrize("interaction", ["none", *OWN])
@pytest.mark.parametrize("forked", [False, True], ids=["plain", "forked"])
def test_xor_of_two_features_is_learned_by_a_linear_layer_only_behind_an_interaction(
    interaction: str, forked: bool
) -> None:
    ids = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2]])
    xor = torch.tensor([0.0, 1.0, 1.0, 0.0])
    batch = Batch(ids, torch.empty(4, 0), torch.stack([xor, 1 - xor], 1), torch.ones(4))
    torch.manual_seed(0)
    model = build_model(
        "shared-bottom", XOR, fork=(lambda: Fork(2)) if forked else None, bottom=(), tower=(), interaction=interaction
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        losses = task_losses(model(batch.categorical, batch.numeric), batch.labels, XOR.tasks)
        sum(losses).backward()
        optimizer.step()
    for loss in losses:
        assert loss > 0.69 if interaction == "none" else loss < 0.01


def test_without_an_interaction_the_input_is_the_embedding_itself() -> None:
    assert isinstance(build_input(SCHEMA, embedding_dim=4), FeatureEmbedding)
    assert list(INTERACTIONS)[:5] == ["none", "dlrm", "dcn-v2", "fm", "masknet"]


@pytest.mark.parametrize(
    ("interaction", "message"),
    [
        ("cin", "Expected an interaction out of none, dlrm, dcn-v2, fm, masknet; found 'cin'"),
        ("dcn-v2:depth=3", "Interaction 'dcn-v2' takes the options layers, rank; found depth"),
        ("fm:rank=3", "Interaction 'fm' takes no options; found rank"),
        ("dcn-v2:layers=2.5", "'dcn-v2', layers: expected a value like 2, found 2.5"),
        ("dcn-v2:layers", "Interaction 'dcn-v2': expected options as key=value .* found 'layers'"),
        ("dcn-v2:rank=1,rank=2", "expected every option once, found rank twice"),
        ("dcn-v2:layers=0", "'shared-bottom': DCN-v2 needs at least 1 layer .* found 0 and 0"),
        ("dcn-v2:rank=-1", "a rank from 0 up, found 2 and -1"),
        ("masknet:blocks=0", "must be at least 1, found 0, 64 and 2"),
        ("torch.nn:Linear", r"takes \(schema, dim, sparse\), found one that takes \(in_features"),
        (f"{__name__}:NotAnInput", "a torch.nn.Module with the columns of its output .* width, found a NotAnInput"),
    ],
)
def test_bad_interactions_are_refused_by_name(interaction: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_model("shared-bottom", SCHEMA, interaction=interaction)


class NotAnInput(nn.Identity):
    def __init__(self, schema: Schema, dim: int, sparse: bool) -> None:
        super().__init__(schema, dim, sparse)


class Doubled(FeatureEmbedding):
    """An input of somebody else's."""

    def __init__(self, schema: Schema, dim: int, *, sparse: bool = False, by: float = 2.0) -> None:
        super().__init__(schema, dim, sparse=sparse)
        self.by = by

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        return super().forward(categorical, numeric) * self.by


@pytest.fixture
def _registered() -> Iterator[None]:
    before = INTERACTIONS.registered()
    register("doubled", Doubled)
    yield
    INTERACTIONS.restore(before)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("name", ["doubled", f"{__name__}:Doubled"])
@pytest.mark.parametrize(("options", "by"), [("", 2.0), (":by=0.5", 0.5)])
def test_an_interaction_of_another_package_is_taken_by_name_or_import_path(name: str, options: str, by: float) -> None:
    model = build_model("mmoe", SCHEMA, interaction=name + options)
    assert model.embedding.by == by


def test_options_of_an_interaction_may_be_widths() -> None:
    built = build_input(SCHEMA, embedding_dim=4, interaction="dlrm:bottom=8-6")
    assert [layer.out_features for layer in built.bottom if isinstance(layer, nn.Linear)] == [8, 6, 4]


def test_the_sharded_embedding_takes_the_place_below_an_interaction() -> None:
    pytest.importorskip("torchrec")
    schema = Schema([*SCHEMA.categorical[:2], Categories("history", 9, 3, table="item")], SCHEMA.numeric, SCHEMA.tasks)
    built, batch = FM(schema, 4), make_batch(schema)
    expected = built(batch.categorical, batch.numeric)
    built.features = ShardableEmbedding(built.features)
    torch.testing.assert_close(built(batch.categorical, batch.numeric), expected)


@every_model
def test_every_model_takes_an_interaction(name: str) -> None:
    assert isinstance(make(name, interaction="fm").embedding, FM)
