"""ESMM: products of probabilities along chains of nested tasks, and what the click's tower is shared by."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from equipoise.errors import SettingError
from equipoise.forks.multibalance import MultiBalance
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import build_model
from equipoise.schema import Categorical, Schema, Task
from tests.ranking.models.cuts import make_batch
from tests.ranking.models.samples import CHAIN, SCHEMA, make


def test_outputs_are_the_logits_of_the_papers_products_along_chains() -> None:
    model, batch = make("esmm", CHAIN).double(), make_batch(CHAIN)
    found = dict(zip(CHAIN.task_names, model(batch.categorical, batch.numeric.double()), strict=True))
    x = model.embedding(batch.categorical, batch.numeric.double())
    places = {name: place for place, name in enumerate(CHAIN.task_names)}

    def given_parent(name: str) -> torch.Tensor:
        place = places[name]
        shared = str(place) in model.shared_towers
        return (model.shared_towers[str(place)] if shared else model.heads[place])(x).sigmoid()

    click, buy, refund, share = map(given_parent, ("click", "buy", "refund", "share"))
    expected = {"click": click, "buy": click * buy, "refund": click * buy * refund, "share": click * share}
    for name, chance in expected.items():
        torch.testing.assert_close(found[name].sigmoid(), chance)
    torch.testing.assert_close(found["like"].sigmoid(), given_parent("like"))
    torch.testing.assert_close(found["seconds"], model.heads[places["seconds"]](x))


def test_losses_are_the_papers_cross_entropies_of_products() -> None:
    model, batch = make("esmm").double(), make_batch(SCHEMA)
    logits = model(batch.categorical, batch.numeric.double())
    x = model.embedding(batch.categorical, batch.numeric.double())
    click, buy = model.shared_towers["0"](x).sigmoid(), model.heads[1](x).sigmoid()
    labels = batch.labels.double()
    expected = [
        functional.binary_cross_entropy(click, labels[:, 0]),
        functional.binary_cross_entropy(click * buy, labels[:, 1]),
    ]
    found = task_losses(logits, labels, SCHEMA.tasks)[:2]
    torch.testing.assert_close(found, expected)
    assert [p is not None for p in torch.autograd.grad(found[1], list(model.parameters()), allow_unused=True)] == [
        p is not None for p in torch.autograd.grad(expected[1], list(model.parameters()), allow_unused=True)
    ]


def test_the_tower_of_a_task_is_shared_by_what_is_nested_in_it_and_weighted_with_the_rest() -> None:
    model, batch = make("esmm", fork=lambda: MultiBalance(SCHEMA.task_names)), make_batch(SCHEMA)
    click_tower = {id(p) for p in model.shared_towers["0"].parameters()}
    assert click_tower <= {id(p) for p in model.shared_parameters()}
    assert list(model.task_parameters("click")) == []
    assert {id(p) for p in model.task_parameters("keys")} == {id(p) for p in model.heads[1].parameters()}
    sum(task_losses(model(batch.categorical, batch.numeric), batch.labels, SCHEMA.tasks)).backward()
    gram = model.fork.last_gram
    assert gram[0, 1] != 0  # they meet at the click's logit
    assert gram[0, 2] == 0  # and the third task reads the embedding alone


def test_the_message_reaches_the_one_who_names_the_model() -> None:
    with pytest.raises(SettingError, match=r"Model 'esmm': ESMM learns nested tasks over all rows.*in buy"):
        build_model("esmm", Schema([Categorical("user", 9)], [], [Task("click"), Task("buy", after="click")]))
