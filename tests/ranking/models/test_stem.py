"""STEM: the paper's gates over all experts, and tables that their own task alone trains."""

from __future__ import annotations

import pytest
import torch

from equipoise.ranking.models import build_model
from tests.ranking.models.cuts import losses_of, make_batch
from tests.ranking.models.samples import SCHEMA, make

BATCH = make_batch(SCHEMA)


def test_outputs_are_those_of_the_papers_equations() -> None:
    model = make("stem").double()
    ids, numbers = BATCH.categorical, BATCH.numeric.double()
    found = model(ids, numbers)
    shared = model.embedding(ids, numbers)
    own = [head.embedding(ids, numbers) for head in model.heads]
    for row in range(16):
        every = [expert(x[row]) for head, x in zip(model.heads, own, strict=True) for expert in head.experts]
        every += [expert(shared[row]) for expert in model.experts]
        for head, x, logits in zip(model.heads, own, found, strict=True):
            scores = (head.gate.weight @ (x[row] + shared[row])).exp()
            mixed = (scores / scores.sum()) @ torch.stack(every)
            torch.testing.assert_close(logits[row], head.tower(mixed.unsqueeze(0))[0])


@pytest.mark.parametrize("sparse", [False, True])
def test_a_loss_trains_the_shared_table_and_that_of_its_task(sparse: bool) -> None:
    model = make("stem", sparse=sparse)
    tables = [model.embedding.table.weight, *(head.embedding.table.weight for head in model.heads)]
    assert len({id(table) for table in tables}) == 4
    for task in range(3):
        loss = losses_of(model, BATCH)[task]
        reached = [grad is not None for grad in torch.autograd.grad(loss, tables, allow_unused=True)]
        assert reached == [True, *(other == task for other in range(3))]


def test_a_task_reads_the_experts_of_the_others() -> None:
    model = make("stem")
    before = model(BATCH.categorical, BATCH.numeric)
    with torch.no_grad():
        model.heads[2].experts[0][0].weight.add_(1.0)
    after = model(BATCH.categorical, BATCH.numeric)
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("option", ["shared_experts", "task_experts"])
def test_without_experts_it_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"STEM needs at least 1 .*expert.*, found 0"):
        build_model("stem", SCHEMA, **{option: 0})
