"""The models: what is shared and what is a task's own, with and without a fork."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from equipoise.forks.fork import Fork
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import ForkFactory, MMoE, RankingModel, build_model
from equipoise.ranking.models.base import Unforked
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from tests.ranking.models.cuts import assert_cut_is_right, assert_partition_is_true, losses_of, make_batch
from tests.ranking.models.samples import (
    CHAIN,
    EVERY_KIND,
    IDS_ALONE,
    NUMBERS_ALONE,
    ONE_TASK,
    SCHEMA,
    every_fork,
    every_model,
    make,
    needed,
)


@every_model
@every_fork
@pytest.mark.parametrize(
    "schema", [SCHEMA, ONE_TASK, NUMBERS_ALONE, IDS_ALONE, CHAIN], ids=["mixed", "one", "num", "ids", "chain"]
)
def test_one_finite_logit_per_row_and_task_for_every_kind_of_schema(name: str, forked: bool, schema: Schema) -> None:
    batch = make_batch(schema)
    model = make(name, schema, forked=forked)
    logits = model(batch.categorical, batch.numeric)
    assert [logit.shape for logit in logits] == [(16,)] * len(schema.tasks)
    assert all(logit.isfinite().all() for logit in logits)
    sum(losses_of(model, batch)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_model
@pytest.mark.parametrize("schema", [SCHEMA, ONE_TASK, NUMBERS_ALONE, CHAIN], ids=["mixed", "one", "num", "chain"])
@every_fork
def test_shared_parameters_are_those_that_several_losses_reach(name: str, forked: bool, schema: Schema) -> None:
    model = make(name, schema, forked=forked)
    assert_partition_is_true(model, make_batch(schema))
    read_by_none = [task.name for task in schema.tasks if task.name not in {other.after for other in schema.tasks}]
    assert all([list(model.shared_parameters()), *(list(model.task_parameters(task)) for task in read_by_none)])
    for place, task in enumerate(schema.task_names):
        by_name, by_place = (list(model.task_parameters(key)) for key in (task, place))
        assert [id(parameter) for parameter in by_name] == [id(parameter) for parameter in by_place]


@every_model
@pytest.mark.parametrize("schema", [SCHEMA, NUMBERS_ALONE, CHAIN, EVERY_KIND], ids=["mixed", "num", "chain", "kinds"])
def test_every_path_to_a_shared_parameter_crosses_one_fork_in_its_own_tasks_branch(name: str, schema: Schema) -> None:
    assert_cut_is_right(lambda fork: make(name, schema, fork=fork), make_batch(schema))


@every_model
def test_the_fork_stands_as_right_above_an_interaction_of_features(name: str) -> None:
    batch = make_batch(EVERY_KIND)
    assert_cut_is_right(lambda fork: make(name, EVERY_KIND, fork=fork, interaction="dcn-v2:layers=1"), batch)
    assert_partition_is_true(make(name, EVERY_KIND, interaction="dcn-v2:layers=1"), batch)


class TwoForks(RankingModel):
    """Two shared networks, a fork behind each; every tower reads both."""

    def __init__(self, schema: Schema, *, fork: ForkFactory | None = None) -> None:
        super().__init__(schema)
        self.first, self.second = (nn.Linear(len(schema.numeric), 3) for _ in range(2))
        self.first_fork, self.second_fork = self.new_fork(fork), self.new_fork(fork)
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in schema.tasks)

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        first = self.branches(self.first_fork, self.first(numeric))
        second = self.branches(self.second_fork, self.second(numeric))
        branches = [torch.cat(pair, 1) for pair in zip(first, second, strict=True)]
        return tuple(head(branch).squeeze(1) for head, branch in zip(self.heads, branches, strict=True))


def two_forks(fork: ForkFactory | None) -> TwoForks:
    torch.manual_seed(0)
    return TwoForks(NUMBERS_ALONE, fork=fork)


def test_a_model_may_have_several_forks_each_of_its_own() -> None:
    batch = make_batch(NUMBERS_ALONE)
    assert_cut_is_right(two_forks, batch)
    model = two_forks(lambda: Fork(SCHEMA.task_names))
    assert_partition_is_true(model, batch)
    assert model.first_fork is not model.second_fork
    sum(losses_of(model, batch)).backward()
    assert not torch.equal(model.first_fork.last_gram, model.second_fork.last_gram)


def bypassed(model: TwoForks) -> None:
    model.second_fork = Unforked(3)


def crossed_twice(model: TwoForks) -> None:
    inner = model.second
    model.second = nn.Sequential(inner, SecondFork(model.second_fork))


def swapped(model: TwoForks) -> None:
    model.second_fork.register_forward_hook(lambda _, __, branches: branches[::-1])


class SecondFork(nn.Module):
    def __init__(self, fork: nn.Module) -> None:
        super().__init__()
        self.fork = fork

    def forward(self, shared: Tensor) -> Tensor:
        return torch.stack(self.fork(shared)).mean(0)


@pytest.mark.parametrize("mistake", [bypassed, crossed_twice, swapped])
def test_the_proof_notices_a_fork_at_a_wrong_place(mistake: Callable[[TwoForks], None]) -> None:
    def build(fork: ForkFactory | None) -> TwoForks:
        model = two_forks(fork)
        if fork is not None:
            mistake(model)
        return model

    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_cut_is_right(build, make_batch(NUMBERS_ALONE))


@every_model
def test_the_same_seed_gives_the_same_weights_logits_and_gradients_with_and_without_a_fork(name: str) -> None:
    plain, forked = make(name), make(name, forked=True)
    batch = make_batch(SCHEMA)
    for model in (plain, forked):
        sum(losses_of(model, batch)).backward()
    pairs = list(zip(plain.named_parameters(), forked.named_parameters(), strict=True))
    for (name_plain, parameter), (name_forked, other) in pairs:
        assert name_plain == name_forked
        assert torch.equal(parameter, other)
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7)
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), make(name, seed=1).parameters(), strict=True))


class Recording(nn.Module):
    """Hands on what it gets, once per task, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def forward(self, shared: object) -> tuple[object, ...]:
        self.seen.append(shared)
        return (shared,) * len(SCHEMA.tasks)


def recorded(name: str) -> tuple[RankingModel, Batch, list[object], tuple[Tensor, ...]]:
    model, batch = make(name), make_batch(SCHEMA)
    model.fork = Recording()
    logits = model(batch.categorical, batch.numeric)
    return model, batch, model.fork.seen, logits


def test_shared_bottom_forks_the_output_of_its_bottom() -> None:
    model, batch, (shared,), _ = recorded("shared-bottom")
    assert shared.shape == (16, 8)
    assert torch.equal(shared, model.bottom(model.embedding(batch.categorical, batch.numeric)))


def test_mmoe_forks_expert_outputs_and_gate_input_and_mixes_them_as_the_paper_says() -> None:
    model, batch, ((outputs, inputs),), logits = recorded("mmoe")
    x = model.embedding(batch.categorical, batch.numeric)
    assert torch.equal(inputs, x)
    assert outputs.shape == (16, 3, 8)
    for head, logit in zip(model.heads, logits, strict=True):
        for row in range(16):
            scores = (head.gate.weight @ x[row]).exp()
            gate = scores / scores.sum()
            mixed = sum(gate[e] * model.experts[e](x[row]) for e in range(3))
            torch.testing.assert_close(head.tower(mixed.unsqueeze(0)).squeeze(0), logit[row])


@every_model
def test_the_gradient_with_respect_to_what_is_forked_counts_every_path_once(name: str) -> None:
    # Chain rule through the pieces: dL/dθ = Σ_pieces (dL/dpiece) (dpiece/dθ), as torchjd's mtl_backward relies on it.
    model, batch, seen, logits = recorded(name)
    pieces = tree_leaves(seen)
    total = sum(task_losses(logits, batch.labels, SCHEMA.tasks))
    parameters = list(model.shared_parameters())
    whole = torch.autograd.grad(total, parameters, retain_graph=True)
    at_pieces = torch.autograd.grad(total, pieces, retain_graph=True)
    through = torch.autograd.grad(pieces, parameters, at_pieces)
    for gradient, expected in zip(through, whole, strict=True):
        torch.testing.assert_close(gradient, expected)


@every_model
def test_a_tiny_set_is_learned_by_heart(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, SCHEMA, fork=lambda: Fork(3), **needed(name, SCHEMA))
    batch = make_batch(SCHEMA, rows=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        sum(losses_of(model, batch)).backward()
        optimizer.step()
    assert all(loss < 0.05 for loss in losses_of(model, batch))


@every_model
def test_a_fork_in_the_place_of_its_factory_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"function that builds a fork, found a Fork module.*lambda: MultiBalance"):
        make(name, fork=Fork(3))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("shared-bottom", {"bottom": ()}),
        ("mmoe", {"expert": ()}),
        ("ple", {"expert": (), "levels": 1}),
        ("aitm", {"bottom": ()}),
        ("stem", {"expert": ()}),
    ],
)
def test_without_shared_layers_tasks_fork_at_the_embedding(name: str, option: dict[str, object]) -> None:
    model = build_model(name, SCHEMA, fork=lambda: Fork(3), **option)
    batch = make_batch(SCHEMA)
    sum(losses_of(model, batch)).backward()
    assert [id(parameter) for parameter in model.shared_parameters()] == [id(model.embedding.table.weight)]


# Tracing an autograd.Function, PyTorch makes an instance of it and warns itself that one should not.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@every_model
def test_compiles_as_one_graph_with_the_same_losses_and_gradients(name: str) -> None:
    torch.compiler.reset()
    model, compiled = make(name, forked=True), make(name, forked=True)
    batch = make_batch(SCHEMA)
    sum(losses_of(model, batch)).backward()
    run: Callable[..., Sequence[Tensor]] = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    sum(losses_of(compiled, batch, run)).backward()
    for parameter, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad)


@every_model
@every_fork
def test_trains_under_bfloat16_autocast_close_to_full_precision(name: str, forked: bool) -> None:
    model, half = make(name, forked=forked), make(name, forked=forked)
    batch = make_batch(SCHEMA)
    expected = losses_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(half, batch)
    assert not torch.equal(torch.stack(losses), torch.stack(expected))
    assert all(loss.dtype == torch.float32 for loss in losses)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=0.02, atol=0.02)
    sum(losses).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in half.parameters())


@every_model
@every_fork
def test_sparse_embedding_gradients_give_the_dense_models_step(name: str, forked: bool) -> None:
    dense = make(name, forked=forked)
    sparse = make(name, forked=forked, sparse=True)
    batch = make_batch(SCHEMA)
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
    batch = make_batch(SCHEMA)
    logits, again = (m(batch.categorical, batch.numeric) for m in (model, other))
    assert all(torch.equal(a, b) for a, b in zip(logits, again, strict=True))


@every_model
def test_a_fork_for_another_number_of_tasks_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"2 branches for 3 tasks \(click, keys, long\.view\)"):
        make(name, fork=lambda: Fork(2))


@every_model
@pytest.mark.parametrize("task", ["like", 3, -1])
def test_an_unknown_task_is_refused_with_the_known_ones(name: str, task: str | int) -> None:
    with pytest.raises(ValueError, match=r"expected one of click, keys, long\.view or 0 to 2"):
        make(name).task_parameters(task)


def test_mmoe_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 expert, found 0"):
        MMoE(SCHEMA, experts=0)


@every_model
def test_an_exported_model_predicts_the_same_and_carries_no_name_that_a_user_chose(name: str, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    schema = Schema(
        [Categorical(f"{hostile}{place}", 20) for place in range(2)],
        [Numeric("ag\ne" + hostile), Numeric("price")],
        [Task(hostile + "a"), Task(hostile + "b", after=hostile + "a", over="all"), Task(hostile + "c")],
    )
    model, some, other = make(name, schema, forked=True).eval(), make_batch(schema), make_batch(schema, rows=7)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (some.categorical, some.numeric), dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(program, tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert not any(b"alert(1)" in archive.read(part) for part in archive.namelist())
    found = torch.export.load(tmp_path / "model.pt2").module()(other.categorical, other.numeric)
    expected = model(other.categorical, other.numeric)
    assert all(torch.equal(one, another) for one, another in zip(found, expected, strict=True))
