"""STAR: partitioned normalisation and star layers against a network for each scenario."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equipoise.ranking.models import build_model
from equipoise.ranking.models.star import PartitionedNorm
from equipoise.schema import Categorical, Categories, Numeric, Schema, Task
from tests.ranking.models.cuts import make_batch
from tests.ranking.models.samples import SCHEMA, make

BATCH = make_batch(SCHEMA, rows=40)


def randomised(model: nn.Module) -> nn.Module:
    """Scenarios with parameters that differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scenario" in name:
                parameter.add_(torch.randn_like(parameter))
    return model


def star(layers: nn.ModuleList, rows: Tensor, scenario: int, *, last: bool) -> Tensor:
    for place, layer in enumerate(layers):
        weight = layer.shared.weight * layer.scenario_weight[scenario]
        rows = rows @ weight.t() + layer.shared.bias + layer.scenario_bias[scenario]
        if not (last and place == len(layers) - 1):
            rows = rows.clamp(min=0)
    return rows


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_a_network_for_each_scenario(training: bool) -> None:
    model = randomised(make("star")).double()
    numbers = BATCH.numeric.double()
    model(BATCH.categorical, numbers)  # moves the running statistics
    model.train(training)
    found = model(BATCH.categorical, numbers)
    x = model.embedding(BATCH.categorical, numbers)
    for scenario in range(5):
        rows = BATCH.categorical[:, 1] == scenario
        mean, var = (
            (x[rows].mean(0), x[rows].var(0, unbiased=False))
            if training
            else (model.norm.running_mean[scenario], model.norm.running_var[scenario])
        )
        norm = model.norm
        z = norm.scale * norm.scenario_scale[scenario] * (x[rows] - mean) / (var + norm.eps).sqrt()
        z = star(model.bottom, z + norm.shift + norm.scenario_shift[scenario], scenario, last=False)
        for head, logits in zip(model.heads, found, strict=True):
            expected = star(head.tower, z, scenario, last=True).squeeze(1) + head.auxiliary(x[rows])
            torch.testing.assert_close(logits[rows], expected)


def test_running_statistics_are_those_of_batch_normalisation_within_each_scenario() -> None:
    torch.manual_seed(0)
    norm, references = PartitionedNorm(3, 4), [nn.BatchNorm1d(3) for _ in range(4)]
    for _ in range(3):
        rows, scenario = torch.randn(30, 3) + 2, torch.randint(0, 3, (30,))  # the last scenario has no row
        found = norm(rows, nn.functional.one_hot(scenario, 4).float())
        for place in range(3):
            torch.testing.assert_close(found[scenario == place], references[place](rows[scenario == place]))
    for place, reference in enumerate(references):
        torch.testing.assert_close(norm.running_mean[place], reference.running_mean)
        torch.testing.assert_close(norm.running_var[place], reference.running_var)


def test_a_scenario_with_one_row_is_finite_and_leaves_its_variance() -> None:
    norm = PartitionedNorm(2, 2)
    rows = torch.tensor([[1.0, 2.0], [5.0, 5.0], [7.0, 9.0]], requires_grad=True)
    found = norm(rows, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert torch.equal(found[0], torch.zeros(2))
    assert torch.equal(norm.running_var[0], torch.ones(2))
    torch.testing.assert_close(norm.running_mean[0], torch.tensor([0.1, 0.2]))
    found.sum().backward()
    assert rows.grad.isfinite().all()


def test_an_id_out_of_range_is_scenario_0_as_in_the_embedding() -> None:
    model = randomised(make("star")).eval()
    ids = BATCH.categorical[:3].clone()
    ids[:, 0], ids[:, 1] = ids[0, 0], torch.tensor([0, -1, 5])
    first, missing, unseen = zip(*(logit.tolist() for logit in model(ids, BATCH.numeric[[0, 0, 0]])), strict=True)
    assert first == missing == unseen


def test_all_scenarios_begin_as_one_network() -> None:
    model = make("star").eval()
    ids = BATCH.categorical[:1].repeat(5, 1)
    ids[:, 1] = torch.arange(5)
    with torch.no_grad():
        model.embedding.table.weight[30:] = 1.0  # the scenario's own embedding
    for logit in model(ids, BATCH.numeric[:1].repeat(5, 1)):
        torch.testing.assert_close(logit, logit[:1].expand(5))


@pytest.mark.parametrize("scenario", ["age", "history", "surface"])
def test_a_scenario_is_a_feature_with_one_id_per_row(scenario: str) -> None:
    schema = Schema(
        [Categorical("user", 9), Categories("history", 9, 3), Categorical("page", 3)], [Numeric("age")], [Task("click")]
    )
    with pytest.raises(ValueError, match=rf"expected as scenario .* out of user, page; found '{scenario}'"):
        build_model("star", schema, scenario=scenario)
    with pytest.raises(ValueError, match="'star' needs the options scenario"):
        build_model("star", schema)
    assert build_model("star", schema, scenario="page").scenario_column == 4
