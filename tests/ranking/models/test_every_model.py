"""Properties of every model beyond its fork: gradients, interactions, other kinds of tasks, odd batches, its state."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from equipoise.forks.fork import Fork
from equipoise.forks.multibalance import MultiBalance
from equipoise.methods import METHODS
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import build_model
from equipoise.schema import Batch, Categorical, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training.learner import Learner
from tests.ranking.models.cuts import losses_of, make_batch
from tests.ranking.models.samples import CHAIN, SCHEMA, SMALL, every_model, make, needed


@every_model
def test_gradients_of_outputs_agree_with_finite_differences(name: str) -> None:
    # At the parameters that a task trains: STEM stops the gradient at those of other tasks.
    model, batch = make(name, forked=True).double(), make_batch(SCHEMA, rows=6)
    for task in range(3):
        own = {id(p) for p in [*model.shared_parameters(), *model.task_parameters(task)]}
        named = {name: p for name, p in model.named_parameters() if id(p) in own}

        def output(*values: Tensor, task: int = task, names: tuple[str, ...] = tuple(named)) -> Tensor:
            given = (batch.categorical, batch.numeric.double())
            return functional_call(model, dict(zip(names, values, strict=True)), given)[task]

        assert torch.autograd.gradcheck(output, tuple(named.values()), fast_mode=True)


@every_model
def test_xor_of_two_features_is_learned(name: str) -> None:
    tasks = [Task("one"), Task("both", after="one", over="all"), Task("other")]
    schema = Schema([Categorical("left", 4), Categorical("right", 4)], [], tasks)
    ids = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    left, right = (ids % 2).unbind(1)
    one = left ^ right
    labels = torch.stack((one, one & (ids[:, 0] > 1), 1 - one), dim=1).float()
    batch = Batch(ids, torch.empty(16, 0), labels, torch.ones(16))
    torch.manual_seed(0)
    model = build_model(name, schema, **needed(name, schema))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        sum(losses_of(model, batch)).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = torch.stack(model(batch.categorical, batch.numeric), dim=1) > 0
    assert torch.equal(predicted, labels > 0)


@every_model
def test_a_fork_that_weighs_by_1_gives_the_plain_sum_of_gradients(name: str) -> None:
    class One(MultiBalance):
        def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
            super().weigh(gram, present)  # its averages move
            return torch.ones_like(gram[0])

    plain, balanced = make(name), make(name, fork=lambda: One(SCHEMA.task_names))
    batch = make_batch(SCHEMA)
    for model in (plain, balanced):
        sum(losses_of(model, batch)).backward()
    for (parameter_name, parameter), other in zip(plain.named_parameters(), balanced.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-7, msg=parameter_name)


@every_model
@pytest.mark.parametrize("method", ["equal", "multibalance", "consmtl", "pub", "single-task"])
def test_every_kind_of_method_trains_it_without_a_warning(name: str, method: str) -> None:
    options = {option: list(size) if isinstance(size, tuple) else size for option, size in SMALL.get(name, {}).items()}
    settings = TrainingSettings.of(model=name, model_options=options | needed(name, SCHEMA), lr=0.02, seed=0)
    learner, batch = Learner(SCHEMA, METHODS[method], settings), make_batch(SCHEMA)
    losses = torch.stack([learner.step(batch) for _ in range(6)])
    assert (losses[-1] < losses[0]).all()


@every_model
def test_regressions_are_learned_beside_binary_tasks(name: str) -> None:
    tasks = [*SCHEMA.tasks, Task("seconds", kind="regression", after="click", mean=30.0, scale=10.0)]
    schema = replace(SCHEMA, tasks=tasks)
    model, batch = make(name, schema, forked=True), make_batch(schema)
    batch.labels[:, 3] = torch.where(batch.labels[:, 0] == 1, 30 + 10 * batch.numeric[:, 0], torch.nan)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        outputs = model(batch.categorical, batch.numeric)
        found = task_losses(outputs, batch.labels, tasks, auxiliary=model.auxiliary_losses(batch.labels))
        sum(found).backward()
        optimizer.step()
        losses.append(torch.stack(found).detach())
    assert (losses[-1] < losses[0]).all()
    assert losses[-1][3] < 0.3 * losses[0][3]


@every_model
def test_many_tasks_and_a_batch_of_one_row(name: str) -> None:
    tasks = [Task(f"task {n}", after=f"task {n - 1}" if n % 3 else "", over="all") for n in range(20)]
    schema = replace(SCHEMA, tasks=tasks)
    model, batch = make(name, schema, forked=True), make_batch(schema, rows=1)
    losses = losses_of(model, batch)
    assert len(losses) == 20
    sum(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_a_task_without_a_label_in_the_batch_gives_gradients_of_exactly_zero(name: str) -> None:
    model, batch = make(name), make_batch(SCHEMA)
    batch.labels[:, 1] = torch.nan
    losses = losses_of(model, batch)
    assert losses[1] == 0
    gradients = torch.autograd.grad(losses[1], list(model.task_parameters(1)))
    assert not any(gradient.any() for gradient in gradients)


@every_model
@pytest.mark.parametrize("fork", [Fork, MultiBalance])
def test_a_state_goes_from_a_model_with_a_fork_into_one_without_and_back(name: str, fork: type[Fork]) -> None:
    plain, forked = make(name), make(name, fork=lambda: fork(SCHEMA.task_names), seed=1)
    batch = make_batch(SCHEMA)
    sum(losses_of(forked, batch)).backward()  # a fork with a state of its own
    expected = [logit.detach() for logit in plain.eval()(batch.categorical, batch.numeric)]
    forked.load_state_dict(plain.state_dict())
    found = forked.eval()(batch.categorical, batch.numeric)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

    other = make(name, seed=2)
    other.load_state_dict(forked.state_dict())
    again = other.eval()(batch.categorical, batch.numeric)
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))


@every_model
def test_a_copy_predicts_the_same(name: str) -> None:
    model, batch = make(name, CHAIN, forked=True), make_batch(CHAIN)
    losses_of(model, batch)
    model.eval()
    found, copied = (m(batch.categorical, batch.numeric) for m in (model, copy.deepcopy(model)))
    assert all(torch.equal(one, other) for one, other in zip(found, copied, strict=True))
