"""AITM: the paper's transfer, its calibrator in two halves, and what a later task's loss reaches."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from equipoise.forks.multibalance import MultiBalance
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import build_model
from equipoise.schema import Task
from tests.ranking.models.cuts import make_batch
from tests.ranking.models.samples import CHAIN, SCHEMA, make


def columns(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [
        model.shared_columns[str(place)] if head.column is None else head.column
        for place, head in enumerate(model.heads)
    ]


def test_outputs_are_those_of_the_papers_equations_along_chains() -> None:
    model, batch = make("aitm", CHAIN).double(), make_batch(CHAIN)
    found = dict(zip(CHAIN.task_names, model(batch.categorical, batch.numeric.double()), strict=True))
    embedded = model.embedding(batch.categorical, batch.numeric.double())
    of_task = dict(zip(CHAIN.task_names, columns(model), strict=True))
    for row, x in enumerate(embedded):

        def z(name: str, x: Tensor = x) -> Tensor:
            column, parent = of_task[name], CHAIN.task(name).after
            q = column.tower(x)
            if not parent:
                return q
            linear = column.transfer[0]
            p = (linear.weight @ z(parent) + linear.bias).clamp(min=0)
            attention = column.attention
            value, query, key = (part.weight for part in (attention.value, attention.query, attention.key))
            scores = [((query @ u) @ (key @ u) / len(u) ** 0.5).exp() for u in (p, q)]
            return sum(score / sum(scores) * (value @ u) for score, u in zip(scores, (p, q), strict=True))

        for place, name in enumerate(CHAIN.task_names):
            torch.testing.assert_close(found[name][row], model.heads[place].last(z(name).unsqueeze(0))[0])


def test_a_later_tasks_loss_reaches_the_parents_network_but_not_its_last_layers() -> None:
    model, batch = make("aitm", fork=lambda: MultiBalance(SCHEMA.task_names)), make_batch(SCHEMA)
    shared = {id(p) for p in model.shared_parameters()}
    assert {id(p) for p in model.shared_columns["0"].parameters()} <= shared
    assert {id(p) for p in model.task_parameters("click")} == {id(p) for p in model.heads[0].last.parameters()}
    assert {id(p) for p in model.heads[1].column.parameters()} <= {id(p) for p in model.task_parameters("keys")}
    sum(task_losses(model(batch.categorical, batch.numeric), batch.labels, SCHEMA.tasks)).backward()
    assert model.fork.last_gram[0, 1] != 0  # both read z of the click
    assert model.fork.last_gram[0, 2] == 0


def calibrator(model: torch.nn.Module, batch, schema) -> tuple[Tensor, Tensor]:
    """The sum of the model's terms, and the paper's: α Σ_t max(ŷ_t − ŷ_s, 0)."""
    outputs = dict(zip(schema.task_names, model(batch.categorical, batch.numeric.double()), strict=True))
    chances = {name: output.sigmoid() for name, output in outputs.items()}
    found = sum(rows.sum() for rows in model.auxiliary_losses(batch.labels).values())
    nested = [task for task in schema.tasks if task.after]
    return found, 0.6 * sum((chances[t.name] - chances[t.after]).clamp(min=0).sum() for t in nested)


@pytest.mark.parametrize("schema", [SCHEMA, CHAIN])
def test_the_halves_of_the_calibrator_have_the_papers_gradient(schema) -> None:
    model, batch = make("aitm", schema).double(), make_batch(schema)
    for head, task in zip(model.heads, schema.tasks, strict=True):  # some rows break the order of probabilities
        torch.nn.init.constant_(head.last[-2].bias, 0.2 * bool(task.after))
    found, expected = calibrator(model, batch, schema)
    assert expected > 0
    torch.testing.assert_close(found, 2 * expected)  # each of the two tasks has it
    last = [p for head in model.heads for p in head.last.parameters()]
    gradients = [torch.autograd.grad(loss, last, retain_graph=True, allow_unused=True) for loss in (found, expected)]
    for mine, papers in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, papers)


def test_the_calibrator_is_for_probabilities_over_all_rows() -> None:
    given = replace(SCHEMA, tasks=[Task("click"), Task("keys", after="click"), Task("long.view")])
    model, batch = make("aitm", given), make_batch(given)
    model(batch.categorical, batch.numeric)
    assert model.auxiliary_losses(batch.labels) == {}
    off = make("aitm", calibration=0.0)
    off(batch.categorical, batch.numeric)
    assert off.auxiliary_losses(batch.labels) == {}


def test_a_model_can_be_copied_between_forward_and_backward() -> None:
    model, batch = make("aitm"), make_batch(SCHEMA)
    model(batch.categorical, batch.numeric)
    assert copy.deepcopy(model).auxiliary_losses(batch.labels) == {}


def test_what_it_cannot_use_is_refused() -> None:
    with pytest.raises(ValueError, match="AITM needs a task that is nested"):
        build_model("aitm", replace(SCHEMA, tasks=[Task("click"), Task("like")]))
    with pytest.raises(ValueError, match=r"calibration from 0 up, found -1\.0"):
        build_model("aitm", SCHEMA, calibration=-1.0)
