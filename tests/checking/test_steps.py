"""Checks of optimizers: the parameters they step and share, against those that the losses reach."""

import pytest
import torch
from torch import nn

from equipoise import PUB, AdaTask, Fork, check
from tests.checking.rankers import TASKS, Ranker, losses_of


class NoFork(Ranker):
    def wire(self, z, _):
        return [z] * 3


def plain(model):
    del model.fork
    return model


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def problems(model, optimizer, losses=None):
    losses = losses_of(model) if losses is None else losses
    report = check(model, dict(zip(TASKS, losses, strict=True)), optimizer=optimizer)
    assert not report.unseen
    return report.problems


def shared_of(model):
    return [*model.table.parameters(), *model.bottom.parameters()]


@pytest.mark.parametrize("kind", [PUB, AdaTask])
def test_the_right_shared_parameters_are_fine(kind):
    model = plain(NoFork())
    assert problems(model, kind(adam(model.parameters()), shared=shared_of(model))) == []


@pytest.mark.parametrize("kind", [PUB, AdaTask])
def test_shared_holds_everything(kind):
    model = plain(NoFork())
    (problem,) = problems(model, kind(adam(model.parameters()), shared=model.parameters()))
    assert problem == (
        f"{kind.__name__}'s `shared` holds every parameter of the model: only 'click' reaches "
        "towers.click; only 'like' reaches towers.like; only 'buy' reaches towers.buy. Leave them out: the optimizer "
        "steps them as usual."
    )


def test_shared_holds_a_tower():
    model = plain(NoFork())
    shared = [*shared_of(model), *model.towers["like"].parameters()]
    (problem,) = problems(model, PUB(adam(model.parameters()), shared=shared))
    assert "holds parameters that several tasks do not share: only 'like' reaches towers.like." in problem


def test_shared_holds_the_table_only():
    model = plain(NoFork())
    (problem,) = problems(model, PUB(adam(model.parameters()), shared=model.table.parameters()))
    assert problem == (
        "PUB's `shared` lacks parameters that several tasks reach: bottom. They get the plain sum of the tasks' "
        "gradients. Give PUB the model's shared parameters, all of them."
    )


def test_pub_around_adatask_is_one_method():
    model = plain(NoFork())
    shared = shared_of(model)
    inner = AdaTask(adam(model.parameters()), shared=shared)
    assert problems(model, PUB(inner, shared=shared)) == []


def test_pub_on_a_model_with_a_fork_names_both():
    model = Ranker()
    (problem,) = problems(model, PUB(adam(model.parameters()), shared=shared_of(model)))
    assert "Two methods balance the same parameters: PUB and fork 'fork' (MultiBalance)." in problem
    assert "Keep one" in problem


def test_pub_on_a_model_whose_fork_only_shows_gradients_is_fine():
    model = Ranker(fork=Fork(TASKS))
    assert problems(model, PUB(adam(model.parameters()), shared=shared_of(model))) == []


def test_an_absent_task_may_be_the_one_that_shares_a_parameter():
    model = plain(NoFork())
    click, _, _ = losses_of(model)
    assert problems(model, PUB(adam(model.parameters()), shared=shared_of(model)), [click, None, None]) == []


def test_a_parameter_that_no_optimizer_steps():
    model = Ranker()
    (problem,) = problems(model, adam(model.towers.parameters()))
    assert problem.startswith("No optimizer steps table.weight, bottom, which losses reach.")
    tables = torch.optim.SparseAdam(model.table.parameters())
    rest = [p for p in model.parameters() if p is not model.table.weight]
    assert problems(model, [adam(rest), tables]) == []


def test_frozen_parameters_need_no_optimizer():
    model = Ranker()
    model.table.requires_grad_(False)
    assert problems(model, adam(p for p in model.parameters() if p.requires_grad)) == []


def test_parameters_that_step_in_a_hook_need_no_optimizer():
    model = Ranker()
    model.table.weight.register_post_accumulate_grad_hook(lambda _: None)
    assert problems(model, adam([*model.bottom.parameters(), *model.towers.parameters()])) == []


def test_an_optimizer_of_a_layer_that_was_replaced():
    model = Ranker()
    optimizer = adam(model.parameters())
    model.towers["buy"] = nn.Linear(3, 1)
    lacking, strange = problems(model, optimizer)
    assert lacking.startswith("No optimizer steps towers.buy, which")
    assert "holds 4 parameters that the model does not have" in strange
    assert "Build it from model.parameters() after the model is complete." in strange


def test_learned_loss_weights_belong_to_the_optimizer_though_not_to_the_model():
    model = Ranker()
    uncertainty = nn.Parameter(torch.zeros(3))
    losses = [loss * (-u).exp() + u for loss, u in zip(losses_of(model), uncertainty, strict=True)]
    assert problems(model, adam([*model.parameters(), uncertainty]), losses) == []
