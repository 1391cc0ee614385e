"""The models: what is shared and what is a task's own, with and without a fork."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from equipoise.forks.fork import Fork
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import MODELS, MMoE, RankingModel, SharedBottom, build_model
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task

SCHEMA = Schema(
    [Categorical("user", 30), Categorical("item", 20)],
    [Numeric("price"), Numeric("age")],
    [Task("click"), Task("keys"), Task("long.view")],  # names that a ModuleDict would refuse
)
ONE_TASK = Schema(SCHEMA.categorical, SCHEMA.numeric, SCHEMA.tasks[:1])
NUMBERS_ALONE = Schema([], SCHEMA.numeric, SCHEMA.tasks)
IDS_ALONE = Schema(SCHEMA.categorical, [], SCHEMA.tasks)
SMALL: dict[str, dict[str, object]] = {
    "shared-bottom": {"embedding_dim": 4, "bottom": (16, 8), "tower": (5,)},
    "mmoe": {"embedding_dim": 4, "experts": 3, "expert": (16, 8), "tower": (5,)},
}
every_model = pytest.mark.parametrize("name", MODELS)
every_fork = pytest.mark.parametrize("forked", [False, True], ids=["plain", "forked"])


def make(name: str, schema: Schema = SCHEMA, *, forked: bool = False, seed: int = 0) -> RankingModel:
    torch.manual_seed(seed)
    return build_model(name, schema, fork=Fork(schema.task_names) if forked else None, **SMALL[name])


def make_batch(schema: Schema = SCHEMA, rows: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, feature.cardinality, (rows,), generator=generator) for feature in schema.categorical]
    return Batch(
        categorical=torch.stack(ids, 1) if ids else torch.empty(rows, 0, dtype=torch.int64),
        numeric=torch.randn(rows, len(schema.numeric), generator=generator),
        labels=torch.randint(0, 2, (rows, len(schema.tasks)), generator=generator).float(),
        weight=torch.ones(rows),
    )


def losses_of(model: nn.Module, batch: Batch) -> list[Tensor]:
    return task_losses(model(batch.categorical, batch.numeric), batch.labels)


@every_model
@every_fork
@pytest.mark.parametrize("schema", [SCHEMA, ONE_TASK, NUMBERS_ALONE, IDS_ALONE], ids=["mixed", "one", "num", "ids"])
def test_one_finite_logit_per_row_and_task_for_every_kind_of_schema(name: str, forked: bool, schema: Schema) -> None:
    batch = make_batch(schema)
    model = make(name, schema, forked=forked)
    logits = model(batch.categorical, batch.numeric)
    assert [logit.shape for logit in logits] == [(16,)] * len(schema.tasks)
    assert all(logit.isfinite().all() for logit in logits)
    sum(losses_of(model, batch)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_model
@pytest.mark.parametrize("schema", [SCHEMA, ONE_TASK, NUMBERS_ALONE], ids=["mixed", "one", "num"])
def test_shared_and_task_parameters_partition_all_parameters(name: str, schema: Schema) -> None:
    model = make(name, schema, forked=True)
    parts = [
        list(model.shared_parameters()),
        *(list(model.task_parameters(task)) for task in schema.task_names),
    ]
    assert all(parts)
    together = [id(parameter) for part in parts for parameter in part]
    assert sorted(together) == sorted(id(parameter) for parameter in model.parameters())
    by_position = [list(model.task_parameters(task)) for task in range(len(schema.tasks))]
    assert [[id(p) for p in part] for part in by_position] == [[id(p) for p in part] for part in parts[1:]]


@every_model
@every_fork
def test_each_tasks_loss_reaches_the_shared_and_its_own_parameters_and_no_others(name: str, forked: bool) -> None:
    for task in range(len(SCHEMA.tasks)):
        model = make(name, forked=forked)
        losses_of(model, make_batch())[task].backward()
        reached = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
        moved = {
            id(parameter) for parameter in model.parameters() if parameter.grad is not None and parameter.grad.any()
        }
        expected = {id(parameter) for parameter in (*model.shared_parameters(), *model.task_parameters(task))}
        assert reached == moved == expected


@every_model
def test_what_the_fork_sees_is_upstream_of_every_shared_parameter_and_of_no_task_parameter(name: str) -> None:
    model = make(name)
    batch = make_batch()
    shared = model.representation(batch.categorical, batch.numeric)
    pieces = [shared] if isinstance(shared, Tensor) else list(shared)
    reached = torch.autograd.grad(sum(piece.sum() for piece in pieces), list(model.parameters()), allow_unused=True)
    shared_ids = {id(parameter) for parameter in model.shared_parameters()}
    assert [gradient is not None for gradient in reached] == [id(p) in shared_ids for p in model.parameters()]


@every_model
def test_the_gradient_of_the_pieces_of_the_representation_counts_every_path_once(name: str) -> None:
    # Chain rule through the representation: dL/dθ = Σ_pieces (dL/dpiece) (dpiece/dθ).
    model = make(name)
    batch = make_batch()
    shared = model.representation(batch.categorical, batch.numeric)
    pieces = [shared] if isinstance(shared, Tensor) else list(shared)
    total = sum(task_losses([head(shared) for head in model.heads], batch.labels))
    parameters = list(model.shared_parameters())
    whole = torch.autograd.grad(total, parameters, retain_graph=True)
    at_pieces = torch.autograd.grad(total, pieces, retain_graph=True)
    through = torch.autograd.grad(pieces, parameters, at_pieces)
    for gradient, expected in zip(through, whole, strict=True):
        torch.testing.assert_close(gradient, expected)


@every_model
def test_the_same_seed_gives_the_same_weights_logits_and_gradients_with_and_without_a_fork(name: str) -> None:
    plain, forked = make(name), make(name, forked=True)
    assert list(forked.fork.parameters()) == []
    batch = make_batch()
    for model in (plain, forked):
        sum(losses_of(model, batch)).backward()
    pairs = list(zip(plain.named_parameters(), forked.named_parameters(), strict=True))
    for (name_plain, parameter), (name_forked, other) in pairs:
        assert name_plain == name_forked
        assert torch.equal(parameter, other)
        torch.testing.assert_close(parameter.grad, other.grad)
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), make(name, seed=1).parameters(), strict=True))


@every_model
def test_the_fork_is_called_once_with_the_representation_and_each_head_gets_its_own_branch(name: str) -> None:
    class Scaling(nn.Module):
        calls = 0

        def forward(self, shared: Tensor | tuple[Tensor, ...]) -> list[object]:
            self.calls += 1
            factors = range(1, len(SCHEMA.tasks) + 1)
            if isinstance(shared, Tensor):
                return [shared * factor for factor in factors]
            return [tuple(piece * factor for piece in shared) for factor in factors]

    model = make(name)
    model.fork = Scaling()
    batch = make_batch()
    logits = model(batch.categorical, batch.numeric)
    assert model.fork.calls == 1
    shared = model.representation(batch.categorical, batch.numeric)
    for factor, head, logit in zip((1, 2, 3), model.heads, logits, strict=True):
        branch = shared * factor if isinstance(shared, Tensor) else tuple(piece * factor for piece in shared)
        torch.testing.assert_close(head(branch), logit)


def test_shared_bottom_forks_the_output_of_its_bottom() -> None:
    model = make("shared-bottom")
    batch = make_batch()
    shared = model.representation(batch.categorical, batch.numeric)
    assert shared.shape == (16, 8)
    assert torch.equal(shared, model.bottom(model.embedding(batch.categorical, batch.numeric)))


def test_mmoe_forks_expert_outputs_and_gate_input_and_mixes_them_as_the_paper_says() -> None:
    model = make("mmoe")
    batch = make_batch()
    outputs, inputs = model.representation(batch.categorical, batch.numeric)
    x = model.embedding(batch.categorical, batch.numeric)
    assert torch.equal(inputs, x)
    assert outputs.shape == (16, 3, 8)
    logits = model(batch.categorical, batch.numeric)
    for head, logit in zip(model.heads, logits, strict=True):
        for row in range(16):
            scores = (head.gate.weight @ x[row]).exp()
            gate = scores / scores.sum()
            mixed = sum(gate[e] * model.experts[e](x[row]) for e in range(3))
            torch.testing.assert_close(head.tower(mixed.unsqueeze(0)).squeeze(0), logit[row])


@every_model
def test_without_shared_layers_tasks_fork_at_the_embedding(name: str) -> None:
    option = {"bottom": ()} if name == "shared-bottom" else {"expert": ()}
    model = build_model(name, SCHEMA, fork=Fork(3), **option)
    batch = make_batch()
    sum(losses_of(model, batch)).backward()
    assert [id(parameter) for parameter in model.shared_parameters()] == [id(model.embedding.table.weight)]


# Tracing an autograd.Function, PyTorch makes an instance of it and warns itself that one should not.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@every_model
@every_fork
def test_compiles_as_one_graph_with_the_same_losses_and_gradients(name: str, forked: bool) -> None:
    torch.compiler.reset()
    model, compiled = make(name, forked=forked), make(name, forked=forked)
    batch = make_batch()
    sum(losses_of(model, batch)).backward()
    run: Callable[..., object] = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    sum(task_losses(run(batch.categorical, batch.numeric), batch.labels)).backward()
    for parameter, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad)


@every_model
@every_fork
def test_trains_under_bfloat16_autocast_close_to_full_precision(name: str, forked: bool) -> None:
    model, half = make(name, forked=forked), make(name, forked=forked)
    batch = make_batch()
    expected = losses_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = half(batch.categorical, batch.numeric)
        losses = task_losses(logits, batch.labels)
    assert all(logit.dtype == torch.bfloat16 for logit in logits)
    assert all(loss.dtype == torch.float32 for loss in losses)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=0.02, atol=0.02)
    sum(losses).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in half.parameters())


@every_model
@every_fork
def test_sparse_embedding_gradients_give_the_dense_models_step(name: str, forked: bool) -> None:
    dense = make(name, forked=forked)
    torch.manual_seed(0)
    sparse = build_model(name, SCHEMA, fork=Fork(3) if forked else None, sparse=True, **SMALL[name])
    batch = make_batch()
    for model in (dense, sparse):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        sum(losses_of(model, batch)).backward()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse invariant checks")
            optimizer.step()
    assert sparse.embedding.table.weight.grad.is_sparse
    for parameter, other in zip(dense.parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(other, parameter)


@every_model
def test_a_state_dict_restores_the_model(name: str) -> None:
    model, other = make(name, forked=True), make(name, forked=True, seed=1)
    other.load_state_dict(model.state_dict())
    batch = make_batch()
    logits, again = (m(batch.categorical, batch.numeric) for m in (model, other))
    assert all(torch.equal(a, b) for a, b in zip(logits, again, strict=True))


@every_model
def test_a_fork_for_another_number_of_tasks_is_refused_by_name(name: str) -> None:
    model = build_model(name, SCHEMA, fork=Fork(2), **SMALL[name])
    batch = make_batch()
    with pytest.raises(ValueError, match=r"2 branches for 3 tasks \(click, keys, long\.view\)"):
        model(batch.categorical, batch.numeric)


@every_model
@pytest.mark.parametrize("task", ["like", 3, -1])
def test_an_unknown_task_is_refused_with_the_known_ones(name: str, task: str | int) -> None:
    with pytest.raises(ValueError, match=r"expected one of click, keys, long\.view or 0 to 2"):
        make(name).task_parameters(task)


def test_models_are_found_by_name_and_an_unknown_name_is_refused_with_the_known_ones() -> None:
    assert {"shared-bottom": SharedBottom, "mmoe": MMoE} == MODELS
    assert isinstance(build_model("mmoe", SCHEMA), MMoE)
    with pytest.raises(ValueError, match="Unknown model 'dlrm': expected one of 'shared-bottom', 'mmoe'"):
        build_model("dlrm", SCHEMA)


def test_mmoe_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 expert, found 0"):
        MMoE(SCHEMA, experts=0)


@every_model
@every_fork
def test_an_exported_model_predicts_the_same_and_carries_no_name_that_a_user_chose(
    name: str, forked: bool, tmp_path: Path
) -> None:
    hostile = "<script>alert(1)</script>"
    schema = Schema(
        [Categorical(f"{hostile}{place}", 20) for place in range(2)],
        [Numeric("ag\ne" + hostile), Numeric("price")],
        [Task(hostile + task) for task in "abc"],
    )
    model, some, other = make(name, schema, forked=forked).eval(), make_batch(schema), make_batch(schema, rows=7)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (some.categorical, some.numeric), dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(program, tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert not any(b"alert(1)" in archive.read(part) for part in archive.namelist())
    found = torch.export.load(tmp_path / "model.pt2").module()(other.categorical, other.numeric)
    expected = model(other.categorical, other.numeric)
    assert all(torch.equal(one, another) for one, another in zip(found, expected, strict=True))
