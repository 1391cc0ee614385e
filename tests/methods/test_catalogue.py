"""Tests of every row of the catalogue, so that a new row needs no new test file."""

import pytest
import torch
from torch import Tensor

from equipoise.methods import CATALOGUE, Method
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import Learner

SCHEMA = Schema(
    [Categorical("user", 30), Categorical("item", 20)],
    [Numeric("age"), Numeric("price")],
    [Task("click"), Task("like"), Task("buy")],
)
ROWS = 64
rows_of_the_catalogue = pytest.mark.parametrize("method", CATALOGUE, ids=lambda method: method.name)


def batch(step: int, tasks: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.stack([torch.randint(f.cardinality, (ROWS,), generator=generator) for f in SCHEMA.categorical], 1)
    numbers = torch.randn(ROWS, 2, generator=generator)
    labels = torch.cat([numbers[:, :1] > 0, numbers[:, 1:] > 0.5, numbers.sum(1, keepdim=True) > 1], dim=1).float()
    labels[::7, 1] = torch.nan
    return Batch(ids, numbers, labels[:, :tasks], torch.ones(ROWS))


def learner(method: Method, schema: Schema = SCHEMA, **settings) -> Learner:
    return Learner(schema, method, TrainingSettings.of(**{"lr": 0.01, "seed": 2, **settings}), epoch_steps=5)


def parameters(trained: Learner) -> list[Tensor]:
    return [p for member in trained._members for p in member.model.parameters()]


def weightings(trained: Learner) -> list[Tensor]:
    return [v for m in trained._members if m.weighting for v in m.weighting.state_dict().values() if torch.is_tensor(v)]


# Methods on parameters do not meet the model, so one of them meets all three.
METHODS_WITH_MODELS = [
    pytest.param(method, model, id=f"{model}-{method.name}")
    for method in CATALOGUE
    for model in ("shared-bottom", "mmoe", "ple")
    if model == "shared-bottom" or method.jacobian is None or method.name == "mgda-parameters"
]


@pytest.mark.parametrize(("method", "model"), METHODS_WITH_MODELS)
def test_every_tasks_loss_falls(method: Method, model: str) -> None:
    # DB-MTL averages gradients over ten steps before Adam does: at a large rate it oscillates for longer.
    trained = learner(method, model=model, lr=0.003 if method.name == "db-mtl-parameters" else 0.01)
    losses = torch.stack([trained.step(batch(step)) for step in range(40)])
    assert (losses[-5:].mean(0) < losses[:5].mean(0)).all()


@rows_of_the_catalogue
def test_a_task_or_all_without_a_label_for_a_while_spoil_nothing(method: Method) -> None:
    trained = learner(method)
    for step in range(25):
        found = batch(step)
        if step in {0, 3, 4, 11, 12, 13}:
            found.labels[:, 2] = torch.nan
        if step == 8:
            found.labels[:] = torch.nan
        losses = trained.step(found)
        assert losses.isfinite().all()
        assert losses[2] == 0 or not found.labels[:, 2].isnan().all()
    assert all(value.isfinite().all() for value in [*parameters(trained), *weightings(trained)])
    assert trained.step(batch(0)).sum() < learner(method).step(batch(0)).sum()


class Spoilt:
    """Makes the second task's logits infinite in the steps in which it is on."""

    def __init__(self, trained: Learner) -> None:
        self.on = False
        for member in trained._members:
            member.model.heads[1].register_forward_hook(self._spoil)

    def _spoil(self, *args) -> Tensor:
        return args[-1] + torch.inf if self.on else args[-1]


@rows_of_the_catalogue
def test_a_task_whose_loss_is_not_finite_is_left_out(method: Method) -> None:
    trained = learner(method, non_finite="skip-task")
    spoilt = Spoilt(trained)
    for step in range(15):
        spoilt.on = step in {2, 7, 11}
        assert trained.step(batch(step)).isfinite().tolist() == [True, not spoilt.on, True]
    assert all(value.isfinite().all() for value in [*parameters(trained), *weightings(trained)])


@rows_of_the_catalogue
def test_a_step_that_is_skipped_moves_nothing_but_the_rate(method: Method) -> None:
    if "a model per task" in method.needs:
        pytest.skip("of single models those step whose own loss is finite")
    whole, skipping = (learner(method, non_finite="skip-step") for _ in range(2))
    spoilt = Spoilt(skipping)
    for step in range(8):
        whole.step(batch(step))
        skipping.step(batch(step))
        if step in {1, 5}:
            before = [p.clone() for p in parameters(skipping)]
            spoilt.on = True
            skipping.step(batch(100))
            spoilt.on = False
            assert all(torch.equal(p, old) for p, old in zip(parameters(skipping), before, strict=True))
    if "epochs" not in method.needs:  # a skipped step ends the epoch sooner
        for one, other in zip(parameters(whole), parameters(skipping), strict=True):
            assert torch.equal(one, other)


@rows_of_the_catalogue
def test_one_task_alone_can_be_trained(method: Method) -> None:
    trained = learner(method, Schema(SCHEMA.categorical, SCHEMA.numeric, SCHEMA.tasks[:1]))
    losses = torch.stack([trained.step(batch(step, tasks=1)) for step in range(30)])
    assert losses[-5:].mean() < losses[:5].mean()


@rows_of_the_catalogue
def test_the_order_of_the_tasks_does_not_matter_to_rounding(method: Method) -> None:
    if method.name == "graddrop":
        pytest.skip("its draws are the same for both orders, but sums of three numbers round to different signs")
    if method.name in {"metabalance", "metabalance-fork", "pub-metabalance", "pcd", "pcd-parameters"}:
        pytest.skip("its target is the first task")
    if method.name == "ldc-mtl":
        pytest.skip("it compares each task with the next")
    if method.name in {"pcgrad", "gradvac", "crmogm-pcgrad", "pcgrad-parameters", "gradvac-parameters"}:
        pytest.skip("it visits the tasks in an order that is drawn by place")
    order = [2, 0, 1]
    turned = Schema(SCHEMA.categorical, SCHEMA.numeric, [SCHEMA.tasks[place] for place in order])
    one, other = learner(method), learner(method, turned)
    with torch.no_grad():  # the towers in the other order start from the same weights
        for mine, theirs in zip(one._members, other._members, strict=False):
            towers = mine.model.heads
            for place, task in enumerate(order):
                theirs.model.heads[place].load_state_dict(towers[task].state_dict())
    if method.name == "single-task":
        pytest.skip("its models are apart")
    for step in range(6):
        found = batch(step)
        first = one.step(found)
        second = other.step(Batch(found.categorical, found.numeric, found.labels[:, order], found.weight))
        torch.testing.assert_close(first[order], second, rtol=1e-4, atol=1e-5)
