"""PLE: the paper's equations at every number of levels, and the one right place for its fork."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from equipoise.forks.fork import Fork
from equipoise.ranking.layers import mixture
from equipoise.ranking.models import PLE, ForkFactory, RankingModel
from equipoise.schema import Categorical, Numeric, Schema, Task
from tests.ranking.models.cuts import (
    FixedWeights,
    assert_cut_is_right,
    assert_partition_is_true,
    losses_of,
    make_batch,
)

SCHEMA = Schema(
    [Categorical("user", 30), Categorical("item", 20)], [Numeric("age")], [Task("click"), Task("like"), Task("buy")]
)
SMALL = {"embedding_dim": 4, "shared_experts": 2, "task_experts": 2, "expert": (6, 5), "tower": (3,)}
BATCH = make_batch(SCHEMA)
every_depth = pytest.mark.parametrize("levels", [1, 2, 3, 4])


def make(fork: ForkFactory | None = None, *, kind: type[PLE] = PLE, **options: object) -> PLE:
    torch.manual_seed(0)
    return kind(SCHEMA, fork=fork, **SMALL | options)


def mixed(gate: nn.Linear, inputs: Tensor, outputs: list[Tensor]) -> Tensor:
    """Softmax(W g) S of one row, as the paper writes it: S holds one expert's output per row."""
    scores = (gate.weight @ inputs).exp()
    return (scores / scores.sum()) @ torch.stack(outputs)


@every_depth
def test_logits_are_those_of_the_papers_equations(levels: int) -> None:
    model = make(levels=levels)
    logits = model(BATCH.categorical, BATCH.numeric)
    embedded = model.embedding(BATCH.categorical, BATCH.numeric)
    for row, x in enumerate(embedded):
        of_tasks, of_shared = [x] * 3, x
        for level in range(1, levels + 1):
            top = level == levels
            columns = [head.column for head in model.heads] if top else model.lower_levels[level - 1].columns
            shared_experts = model.top_experts if top else model.lower_levels[level - 1].shared_experts
            own = [[expert(g) for expert in column.experts] for column, g in zip(columns, of_tasks, strict=True)]
            shared = [expert(of_shared) for expert in shared_experts]
            if top:
                gates = [head.gate for head in model.heads]
            elif level == levels - 1:
                gates = [head.column.gate_below for head in model.heads]
            else:
                gates = [column.gate_below for column in model.lower_levels[level].columns]
            read = zip(gates, of_tasks, own, strict=True)
            if not top:
                everything = [output for outputs in own for output in outputs] + shared
                of_shared = mixed(model.lower_levels[level - 1].shared_gate, of_shared, everything)
            of_tasks = [mixed(gate, g, outputs + shared) for gate, g, outputs in read]
        for head, g, logit in zip(model.heads, of_tasks, logits, strict=True):
            torch.testing.assert_close(head.tower(g.unsqueeze(0))[0], logit[row], rtol=1e-4, atol=1e-5)


@every_depth
def test_one_fork_cuts_every_depth_and_the_partition_is_that_of_the_gradients(levels: int) -> None:
    assert_cut_is_right(lambda fork: make(fork, levels=levels), BATCH)
    assert_partition_is_true(make(levels=levels), BATCH)
    assert_partition_is_true(make(lambda: FixedWeights(SCHEMA.task_names), levels=levels), BATCH)


def test_an_expert_of_a_task_is_shared_below_the_top_and_the_gate_above_it_is_the_tasks_own() -> None:
    model = make(levels=3)
    shared = {id(parameter) for parameter in model.shared_parameters()}
    first, second = model.lower_levels
    for task in range(3):
        own = {id(parameter) for parameter in model.task_parameters(task)}
        head = model.heads[task]
        assert all(id(p) in shared for level in (first, second) for p in level.columns[task].parameters())
        for module in (head.column.experts, head.column.gate_below, head.gate, head.tower):
            assert all(id(parameter) in own for parameter in module.parameters())


@pytest.mark.parametrize(("levels", "inputs"), [(1, 1), (2, 1), (3, 3)])
def test_the_tasks_gradients_meet_in_one_piece_where_all_gates_read_the_embedding(levels: int, inputs: int) -> None:
    seen: list[tuple[list[Tensor], ...]] = []

    class Recording(nn.Module):
        def forward(self, pieces: tuple[object, Tensor]) -> tuple[object, ...]:
            seen.append(pieces)
            return (pieces,) * 3

    make(Recording, levels=levels)(BATCH.categorical, BATCH.numeric)
    ((read, top),) = seen
    assert len(read.inputs) == inputs
    assert len(read.task_outputs) == (0 if levels == 1 else 3)
    assert top.shape == (16, 2, 5)


class TwoLevels(PLE):
    """The same network with its forward pass written out, for forks at other places."""

    copies: Callable[[TwoLevels, Tensor], tuple[list[Tensor], Tensor]]
    top: Callable[[TwoLevels, list[Tensor], list[Tensor], Tensor, Tensor], list[tuple[Tensor, ...]]]

    def __init__(self, schema: Schema, *, fork: ForkFactory | None = None, **options: object) -> None:
        super().__init__(schema, fork=fork, **options)
        self.second_fork = self.new_fork(fork)

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        x_of_tasks, x_of_shared = self.copies(self.embedding(categorical, numeric))
        (level,) = self.lower_levels
        own = [column.experts(x) for column, x in zip(level.columns, x_of_tasks, strict=True)]
        shared = level.shared_experts(x_of_shared)
        g = mixture(level.shared_gate(x_of_shared), torch.cat([*own, shared], 1))
        logits = []
        for head, (x, lower, top) in zip(
            self.heads, self.top(x_of_tasks, own, shared, self.top_experts(g)), strict=True
        ):
            inputs = x if lower is None else mixture(head.column.gate_below(x), lower)
            outputs = torch.cat([head.column.experts(inputs), top], 1)
            logits.append(head.tower(mixture(head.gate(inputs), outputs)))
        return tuple(logits)


def no_copies(_: TwoLevels, x: Tensor) -> tuple[list[Tensor], Tensor]:
    return [x] * 3, x


def a_copy_per_task(model: TwoLevels, x: Tensor) -> tuple[list[Tensor], Tensor]:
    return list(model.branches(model.second_fork, x)), x


def the_shared_experts_read_the_first_copy(model: TwoLevels, x: Tensor) -> tuple[list[Tensor], Tensor]:
    copies = list(model.branches(model.second_fork, x))
    return copies, copies[0]


def the_shared_experts_read_the_mean_of_the_copies(model: TwoLevels, x: Tensor) -> tuple[list[Tensor], Tensor]:
    copies = list(model.branches(model.second_fork, x))
    return copies, torch.stack(copies).mean(0)


def everything_that_tasks_read(model, x, own, shared, top):
    """Fork everything that tasks read, except x where each task reads its own copy of it already."""
    if x[0] is x[1]:
        branches = model.branches(model.fork, (x[0], own, shared, top))
    else:
        branches = [(x[task], *branch) for task, branch in enumerate(model.branches(model.fork, (own, shared, top)))]
    return [(x, torch.cat([own[task], shared], 1), top) for task, (x, own, shared, top) in enumerate(branches)]


def top_experts_alone(model, x, own, shared, top):
    branches = model.branches(model.fork, top)
    return [(x[task], torch.cat([own[task], shared], 1), branches[task]) for task in range(3)]


def lower_experts_alone(model, x, own, shared, top):
    branches = model.branches(model.fork, (own, shared))
    return [(x[task], torch.cat([branches[task][0][task], branches[task][1]], 1), top) for task in range(3)]


def without_the_gates_inputs(model, x, own, shared, top):
    branches = model.branches(model.fork, (own, shared, top))
    return [(x[task], torch.cat([own[task], shared], 1), top) for task, (own, shared, top) in enumerate(branches)]


def mixtures_and_top_experts(model, x, own, shared, top):
    """Fork the mixtures and the top experts, which leaves each task's own lower gate upstream: the wrong side."""
    columns = [head.column for head in model.heads]
    g = [
        mixture(column.gate_below(one), torch.cat([outputs, shared], 1))
        for column, one, outputs in zip(columns, x, own, strict=True)
    ]
    branches = model.branches(model.fork, (g, top))
    return [(g[task], None, top) for task, (g, top) in enumerate(branches)]


def written_out(copies, top) -> Callable[[ForkFactory | None], RankingModel]:
    kind = type("Cut", (TwoLevels,), {"copies": copies, "top": top})
    return lambda fork: make(fork, kind=kind, levels=2)


def test_written_out_it_is_the_same_network_and_the_proof_accepts_the_right_cut() -> None:
    build = written_out(no_copies, everything_that_tasks_read)
    model, same = make(levels=2), build(None)
    for one, other in zip(model(BATCH.categorical, BATCH.numeric), same(BATCH.categorical, BATCH.numeric), strict=True):
        torch.testing.assert_close(one, other)
    assert_cut_is_right(build, BATCH)


@pytest.mark.parametrize(
    ("copies", "top"),
    [
        (a_copy_per_task, everything_that_tasks_read),
        (the_shared_experts_read_the_first_copy, everything_that_tasks_read),
        (the_shared_experts_read_the_mean_of_the_copies, everything_that_tasks_read),
        (no_copies, top_experts_alone),
        (no_copies, lower_experts_alone),
        (no_copies, without_the_gates_inputs),
        (no_copies, mixtures_and_top_experts),
    ],
)
def test_every_other_cut_is_noticed(copies: Callable[..., object], top: Callable[..., object]) -> None:
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_cut_is_right(written_out(copies, top), BATCH)


def foreign_share(model: TwoLevels, fork: str) -> float:
    """Return the share of other tasks' losses in the gradient of the first task's branch, as a ratio of norms."""
    leaves: list[Tensor] = []
    getattr(model, fork).register_forward_hook(
        lambda _, __, branches: leaves.extend(tree_leaves(branches[0]))  # type: ignore[func-returns-value]
    )
    own, others = [], []
    for task in range(3):
        leaves.clear()
        loss = losses_of(model, BATCH)[task]
        found = [g for g in torch.autograd.grad(loss, leaves, allow_unused=True) if g is not None]
        (others if task else own).extend(gradient.norm() for gradient in found)
    norms = [torch.stack([*norms, torch.zeros(())]).norm() for norms in (own, others)]
    return (norms[1] / norms[0]).item()


def test_a_branch_carries_the_gradient_of_its_own_task_alone_but_at_a_lower_level_those_of_all() -> None:
    def fork() -> Fork:
        return Fork(SCHEMA.task_names)

    assert foreign_share(written_out(no_copies, everything_that_tasks_read)(fork), "fork") == 0
    lower = written_out(a_copy_per_task, everything_that_tasks_read)(fork)
    assert foreign_share(lower, "fork") == 0
    assert foreign_share(lower, "second_fork") > 0.1
