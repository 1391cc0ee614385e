"""Any module that returns one logit per task is trained by every kind of method, as a model of equipoise is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equipoise.data import Dataset
from equipoise.methods import METHODS
from equipoise.ranking.models import ForkFactory
from equipoise.schema import Schema
from equipoise.settings import TrainingSettings
from equipoise.training import train
from equipoise.training.learner import Learner


class Naive(nn.Module):
    """A model that does not state its shared parameters; its batch normalisation cannot train on a single row."""

    def __init__(self, schema: Schema, fork: ForkFactory, width: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(schema.categorical[0].cardinality, width)
        self.norm = nn.BatchNorm1d(width)
        self.fork = fork()
        self.gates, self.towers = (nn.ModuleList(nn.Linear(width, out) for _ in schema.tasks) for out in (width, 1))

    def forward(self, categorical: Tensor, numeric: Tensor) -> list[Tensor]:
        shared = self.norm(self.table(categorical[:, 0]))
        return [
            tower(branch * gate(branch).sigmoid()).squeeze(1)
            for tower, gate, branch in zip(self.towers, self.gates, self.fork(shared), strict=True)
        ]


PATH = f"{__name__}:Naive"


@pytest.mark.parametrize("name", ["equal", "multibalance", "pub", "single-task"])
def test_a_foreign_model_is_trained(tiny: Dataset, name: str) -> None:
    run = train(tiny, METHODS[name], model=PATH, model_options={"width": 8}, batch_size=64, lr=0.01, epochs=1)
    assert run.status == "ok"
    assert set(run.test) == set(tiny.schema.task_names)


def test_pub_is_given_what_several_tasks_of_a_foreign_model_reach(tiny: Dataset) -> None:
    learner = Learner(tiny.schema, METHODS["pub"], TrainingSettings.of(model=PATH, lr=0.01, seed=0))
    (member,) = learner._members
    names = {id(parameter): name for name, parameter in member.model.named_parameters()}
    assert {names[id(p)] for p in member.optimizer.shared} == {"table.weight", "norm.weight", "norm.bias"}
    assert torch.equal(member.model.norm.running_mean, torch.zeros(4))
