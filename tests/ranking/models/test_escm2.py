"""ESCM²: the counterfactual risks against sums over rows, and whose parameters they reach."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from equipoise.methods import METHODS
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import build_model
from equipoise.settings import TrainingSettings
from equipoise.training.learner import Learner
from tests.ranking.models.cuts import make_batch
from tests.ranking.models.samples import CHAIN, ONE_TASK, SCHEMA, make

BATCH = make_batch(SCHEMA)


def risks(risk: str, largest: float = 15.0) -> tuple[Tensor, list[float]]:
    """The model's risk of each row, and the paper's, row by row in Python's numbers."""
    model = make("escm2", risk=risk, risk_weight=0.5, largest_weight=largest).double()
    model(BATCH.categorical, BATCH.numeric.double())
    found = model.auxiliary_losses(BATCH.labels.double())
    assert found.keys() == {"keys"}
    x = model.embedding(BATCH.categorical, BATCH.numeric.double())
    head = model.heads[1]
    tower = head if risk == "ips" else head.tower
    clicks, buys = model.shared_towers["0"](x).sigmoid().tolist(), tower(x).sigmoid().tolist()
    imputed = [0.0] * 16 if risk == "ips" else head.imputation(x).tolist()
    expected = []
    for o, r, click, buy, raw in zip(*BATCH.labels.t()[:2].tolist(), clicks, buys, imputed, strict=True):
        error = -math.log(buy) if r else -math.log(1 - buy)
        weight = o * min(1 / click, largest)
        estimate = math.log1p(math.exp(raw))
        ips = weight * error
        dr = estimate + weight * (error - estimate) + weight * (error - estimate) ** 2
        expected.append(0.5 * (ips if risk == "ips" else dr))
    return found["keys"], expected


@pytest.mark.parametrize("risk", ["ips", "dr"])
@pytest.mark.parametrize("largest", [15.0, 1.5])
def test_risks_are_the_papers(risk: str, largest: float) -> None:
    found, expected = risks(risk, largest)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("risk", ["ips", "dr"])
def test_no_gradient_flows_through_the_propensity_and_the_risk_reaches_its_task_alone(risk: str) -> None:
    model = make("escm2", risk=risk)
    model(BATCH.categorical, BATCH.numeric)
    (loss,) = [rows.sum() for rows in model.auxiliary_losses(BATCH.labels).values()]
    names = [name for name, _ in model.named_parameters()]
    gradients = dict(zip(names, torch.autograd.grad(loss, list(model.parameters()), allow_unused=True), strict=True))
    reached = {name.partition(".")[0] + ("." + name.split(".")[1] if name.startswith("heads") else "")
               for name, gradient in gradients.items() if gradient is not None}  # fmt: skip
    assert reached == {"embedding", "heads.1"}


def test_a_row_without_one_of_the_two_labels_counts_nothing() -> None:
    model = make("escm2", risk="dr")
    labels = BATCH.labels.clone()
    labels[2, 0], labels[3, 1] = torch.nan, -1
    model(BATCH.categorical, BATCH.numeric)
    rows = model.auxiliary_losses(labels)["keys"]
    assert rows[2] == rows[3] == 0
    assert rows.isfinite().all()


def test_the_risk_is_added_to_the_loss_of_its_task_and_each_forward_pass_has_one() -> None:
    model = make("escm2", risk="ips")
    outputs = model(BATCH.categorical, BATCH.numeric)
    further = model.auxiliary_losses(BATCH.labels)
    without = task_losses(outputs, BATCH.labels, SCHEMA.tasks)
    both = task_losses(outputs, BATCH.labels, SCHEMA.tasks, auxiliary=further)
    torch.testing.assert_close(both[1], without[1] + further["keys"].mean())
    assert torch.equal(torch.stack(both)[[0, 2]], torch.stack(without)[[0, 2]])
    assert model.auxiliary_losses(BATCH.labels) == {}
    model.eval()(BATCH.categorical, BATCH.numeric)
    assert model.auxiliary_losses(BATCH.labels) == {}


def test_a_task_in_the_middle_of_a_chain_has_its_risk_and_that_of_the_next_weighs_by_the_product() -> None:
    model, batch = make("escm2", CHAIN, risk="ips", largest_weight=1e9).double(), make_batch(CHAIN)
    outputs = dict(zip(CHAIN.task_names, model(batch.categorical, batch.numeric.double()), strict=True))
    found = model.auxiliary_losses(batch.labels.double())
    assert found.keys() == {"refund", "buy", "share"}
    x = model.embedding(batch.categorical, batch.numeric.double())
    bought, refunded = batch.labels[:, 2].double(), batch.labels[:, 0].double()
    error = torch.nn.functional.binary_cross_entropy_with_logits(model.heads[0](x), refunded, reduction="none")
    torch.testing.assert_close(found["refund"], bought * error / outputs["buy"].sigmoid())


def test_a_model_can_be_copied_between_forward_and_backward() -> None:
    model = make("escm2", risk="dr")
    model(BATCH.categorical, BATCH.numeric)
    assert copy.deepcopy(model).auxiliary_losses(BATCH.labels) == {}
    assert model.auxiliary_losses(BATCH.labels)["keys"].requires_grad


@pytest.mark.parametrize("method", ["equal", "multibalance", "single-task"])
def test_a_training_trains_the_tower_of_the_estimate(method: str) -> None:
    settings = TrainingSettings.of(model="escm2", model_options={"risk": "dr"}, lr=0.01, seed=0)
    learner = Learner(SCHEMA, METHODS[method], settings)
    before = [copy.deepcopy(member.model.state_dict()) for member in learner._members]
    learner.step(BATCH)
    moved = [
        not torch.equal(value, before[place][name])
        for place, member in enumerate(learner._members)
        for name, value in member.model.state_dict().items()
        if "imputation" in name and "weight" in name and member.tasks in ([0, 1, 2], [1])
    ]
    assert moved
    assert all(moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"risk": "snips"}, "expected a risk out of ips, dr; found 'snips'"),
        ({"risk_weight": -1.0}, "risk_weight from 0 up"),
        ({"largest_weight": 0.5}, "largest_weight from 1 up"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model("escm2", SCHEMA, **options)


def test_the_message_names_this_model() -> None:
    with pytest.raises(ValueError, match="ESCM2 needs a task that is nested"):
        build_model("escm2", replace(ONE_TASK))
