"""HoME: the paper's two levels, and what belongs to all tasks, to a group, and to one task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from equipoise.methods import METHODS
from equipoise.ranking.models import HoME, build_model
from equipoise.schema import Categorical, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training.learner import Learner
from tests.ranking.models.cuts import assert_cut_is_right, assert_partition_is_true, make_batch
from tests.ranking.models.samples import CHAIN, SCHEMA, make

BATCH = make_batch(SCHEMA)


def expert(part: nn.Sequential, x: Tensor) -> Tensor:
    """Swish(BatchNorm(W (x ⊙ 2σ(x B A)) + b)) of one layer, on running statistics."""
    gate, linear, norm, _ = part
    x = x * 2 / (1 + (-(gate.up.weight @ (gate.down.weight @ x))).exp())
    z = linear.weight @ x + linear.bias
    z = norm.weight * (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() + norm.bias
    return z / (1 + (-z).exp())


def mixed(mixer: nn.Module, inputs: Tensor, own: list[Tensor], others: list[Tensor]) -> Tensor:
    every, mine = (mixer.gate.weight @ inputs).exp(), (mixer.self_gate.weight @ inputs).exp()
    weights = mine / (1 + mine) if len(own) == 1 else mine / mine.sum()
    return every / every.sum() @ torch.stack([*own, *others]) + weights @ torch.stack(own)


@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize("groups", ["", "click / keys / long.view", "click,keys,long.view", "long.view, click / keys"])
def test_outputs_are_those_of_the_papers_equations(groups: str, experts: int) -> None:
    model = make("home", groups=groups, experts=experts).double()
    model(BATCH.categorical, BATCH.numeric.double())  # moves the running statistics
    model.eval()
    found = model(BATCH.categorical, BATCH.numeric.double())
    for row, x in enumerate(model.embedding(BATCH.categorical, BATCH.numeric.double())):
        shared = [expert(part, x) for part in model.meta_experts]
        of_groups = [[expert(part, x) for part in experts] for experts in model.meta_group_experts]
        z_s = mixed(model.meta_mixer, x, shared, [output for outputs in of_groups for output in outputs])
        top_shared = [expert(part, z_s) for part in model.shared_experts]
        for place, group in enumerate(model.groups):
            for task in group:
                head = model.heads[task]
                part = head.group_part or model.group_parts[str(place)]
                z = mixed(part.mixer, x, of_groups[place], shared)
                own = [expert(one, z) for one in head.experts]
                others = [*(expert(one, z) for one in part.experts), *top_shared]
                t = mixed(head.mixer, torch.cat((z, z_s)), own, others)
                torch.testing.assert_close(found[task][row], head.tower(t.unsqueeze(0))[0])


@pytest.mark.parametrize("groups", ["click / keys / long.view", "click,keys,long.view", "long.view, click / keys"])
def test_every_grouping_has_its_cut_and_its_partition(groups: str) -> None:
    assert_cut_is_right(lambda fork: make("home", fork=fork, groups=groups), BATCH)
    assert_partition_is_true(make("home", groups=groups), BATCH)


def test_the_part_of_a_group_is_the_tasks_own_where_it_has_one() -> None:
    model = make("home", groups="click, keys / long.view")
    shared = {id(p) for p in model.shared_parameters()}
    assert {id(p) for p in model.group_parts["0"].parameters()} <= shared
    assert {id(p) for p in model.meta_group_experts.parameters()} <= shared
    alone = {id(p) for p in model.heads[2].group_part.parameters()}
    assert alone <= {id(p) for p in model.task_parameters("long.view")}
    assert [head.group_part is None for head in model.heads] == [True, True, False]


def test_groups_are_the_trees_of_nested_tasks_unless_stated() -> None:
    assert make("home").groups == [[0, 1], [2]]
    assert make("home", CHAIN).groups == [[0, 1, 2, 4], [3], [5]]
    flat = Schema([Categorical("user", 9)], [], [Task("click"), Task("like")])
    assert HoME(flat).groups == [[0], [1]]
    assert HoME(flat, groups="like/click").groups == [[1], [0]]


def test_a_batch_of_one_row_trains() -> None:
    model = make("home")
    for logit in model(BATCH.categorical[:1], BATCH.numeric[:1]):
        assert logit.isfinite().all()


def test_a_skipped_step_leaves_the_running_statistics() -> None:
    settings = TrainingSettings.of(model="home", lr=0.01, seed=0, non_finite="skip-step")
    learner = Learner(SCHEMA, METHODS["multibalance"], settings)
    learner.step(BATCH)
    (member,) = learner._members
    before = {name: value.clone() for name, value in member.model.named_buffers()}
    learner.step(replace(BATCH, numeric=torch.full_like(BATCH.numeric, torch.nan)))
    assert learner.skipped_steps == 1
    assert all(torch.equal(value, before[name]) for name, value in member.model.named_buffers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "click / keys"}, "each task once, such as 'click / keys / long.view'; found 'click / keys'"),
        ({"groups": "click, click / keys / long.view"}, "each task once"),
        ({"groups": "click, like / keys / long.view"}, "each task once"),
        ({"experts": 0}, "at least 1 expert in each set, found 0"),
        ({"gate_rank": 0}, "at least 1 rank of a feature gate, found 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model("home", SCHEMA, **options)
