"""Every built-in model passes ``check``: its forks are placed right, and it names its shared parameters truly."""

import pytest
import torch

from equipoise import PUB, MultiBalance, check
from equipoise.ranking.models import MODELS, build_model
from equipoise.schema import Categorical, Numeric, Schema, Task
from tests.ranking.models.cuts import losses_of, make_batch

SCHEMA = Schema([Categorical("user", 9), Categorical("item", 5)], [Numeric("age")], [Task("click"), Task("like")])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sparse", [False, True])
def test_forks_stand_in_their_place(name, sparse):
    model = build_model(name, SCHEMA, fork=lambda: MultiBalance(SCHEMA.task_names), sparse=sparse)
    report = check(model, losses_of(model, make_batch(SCHEMA)), optimizer=torch.optim.SGD(model.parameters()))
    assert report.ok, str(report)


@pytest.mark.parametrize("name", MODELS)
def test_shared_parameters_are_the_shared_ones(name):
    model = build_model(name, SCHEMA)
    optimizer = PUB(torch.optim.Adam(model.parameters()), shared=model.shared_parameters())
    report = check(model, losses_of(model, make_batch(SCHEMA)), optimizer=optimizer)
    assert report.ok, str(report)
    assert set(report.shared) == {
        name for name, p in model.named_parameters() if any(p is shared for shared in model.shared_parameters())
    }
