"""Every built-in model passes ``check``: its forks are placed right, and it names its shared parameters truly."""

import pytest
import torch

from equipoise import PUB, MultiBalance, check
from tests.ranking.models.cuts import losses_of, make_batch
from tests.ranking.models.samples import CHAIN, SCHEMA, every_model, make


@every_model
@pytest.mark.parametrize(("schema", "sparse"), [(SCHEMA, False), (SCHEMA, True), (CHAIN, False)])
def test_forks_stand_in_their_place(name, schema, sparse):
    model = make(name, schema, fork=lambda: MultiBalance(schema.task_names), sparse=sparse)
    report = check(model, losses_of(model, make_batch(schema)), optimizer=torch.optim.SGD(model.parameters()))
    assert report.ok, str(report)


@every_model
def test_shared_parameters_are_the_shared_ones(name):
    model = make(name)
    optimizer = PUB(torch.optim.Adam(model.parameters()), shared=model.shared_parameters())
    report = check(model, losses_of(model, make_batch(SCHEMA)), optimizer=optimizer)
    assert report.ok, str(report)
    assert set(report.shared) == {
        name for name, p in model.named_parameters() if any(p is shared for shared in model.shared_parameters())
    }
