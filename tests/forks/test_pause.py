"""A pause leaves no trace; torch.func balances as backward() does, or refuses with a message."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from equipoise import Monitor, paused
from equipoise.forks import Fork, GradDrop, MultiBalance
from tests.forks.fork_gradients import Towers, random

X = random(3, 8, 6)
FORKS = [MultiBalance(3), MultiBalance(3, overlap=True), MultiBalance(3, gram_every=2), GradDrop(3), Fork(3)]


def plain_gradients(x: Tensor = X) -> list[Tensor]:
    """The gradient of each loss at the shared weight, with no fork in between."""
    model = Towers(None)
    return [torch.autograd.grad(loss, model.bottom.weight, retain_graph=True)[0] for loss in model(x)]


def trained(fork: Fork) -> Towers:
    model = Towers(copy.deepcopy(fork))
    for step in range(3):
        sum(model(random(step, 8, 6))).backward()
    model.zero_grad()
    return model


def traces(model: Towers) -> list[Tensor]:
    fork = model.fork
    return [v.clone() for v in (*fork.buffers(), fork.last_gram, fork.last_weights, fork.last_present)]


@pytest.mark.parametrize("made", ["before", "inside"])
@pytest.mark.parametrize("fork", FORKS, ids=repr)
def test_losses_one_by_one_give_their_plain_gradients_and_leave_no_trace(fork, made):
    model, twin = trained(fork), trained(fork)
    before = traces(model)
    losses = model(X)
    with paused(model):
        looked_at = model(X) if made == "inside" else losses
        for loss, expected in zip(looked_at, plain_gradients(), strict=True):
            (found,) = torch.autograd.grad(loss, model.bottom.weight, retain_graph=True)
            torch.testing.assert_close(found, expected)
    assert all(torch.equal(*pair) for pair in zip(before, traces(model), strict=True))
    sum(losses).backward()  # the step is weighed as if nothing had been
    sum(twin(X)).backward()
    assert torch.equal(model.bottom.weight.grad, twin.bottom.weight.grad)
    assert all(torch.equal(*pair) for pair in zip(traces(twin), traces(model), strict=True))


def test_without_a_pause_the_same_look_counts_as_a_step_and_the_real_one_is_refused():
    model = trained(MultiBalance(3))
    losses = model(X)
    torch.autograd.grad(losses[0], model.bottom.weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="must see them in one backward"):
        sum(losses).backward()


def test_pauses_may_be_nested_and_end_with_an_error():
    model = trained(MultiBalance(3))
    with paused(model), paused(model):
        pass
    with pytest.raises(KeyError), paused(model):
        raise KeyError
    before = model.fork.averages.clone()
    sum(model(X)).backward()
    assert not torch.equal(model.fork.averages, before)


def test_every_fork_of_a_model_is_paused_and_a_model_without_one_is_left_alone():
    model = nn.ModuleList([Fork(2), nn.Sequential(MultiBalance(2))])
    with paused(model):
        assert [module.pauses for module in model.modules() if isinstance(module, Fork)] == [1, 1]
    with paused(nn.Linear(1, 1)):
        pass


def test_a_monitor_goes_on_reading_the_last_step():
    model = trained(MultiBalance(3))
    monitor = Monitor(model)
    before = monitor.read().scalars()
    with paused(model):
        sum(model(X)).backward()
    assert monitor.read().scalars() == before


# --- torch.func ----------------------------------------------------------------------------------------


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


def total(model: nn.Module):
    return lambda values, x: sum(functional_call(model, values, (x,)))


@pytest.mark.parametrize("how", ["grad", "vjp"])
@pytest.mark.parametrize("fork", FORKS, ids=repr)
def test_functional_gradients_are_those_of_backward(fork, how):
    model, twin = trained(fork), trained(fork)
    sum(twin(X)).backward()
    if how == "grad":
        found = grad(total(model))(parameters(model), X)
    else:
        _, back = vjp(lambda values: total(model)(values, X), parameters(model))
        found = back(torch.ones(()))[0]
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    for pair in zip(traces(twin), traces(model), strict=True):
        torch.testing.assert_close(*pair)  # transformed tensors go through PyTorch's operations, others through C


def test_a_functional_gradient_of_a_gradient_is_that_of_create_graph():
    model, twin = trained(MultiBalance(3)), trained(MultiBalance(3))
    penalty = lambda values: grad(total(model))(values, X)["bottom.weight"].square().sum()  # noqa: E731
    found = grad(penalty)(parameters(model))["bottom.weight"]
    (first,) = torch.autograd.grad(sum(twin(X)), twin.bottom.weight, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), twin.bottom.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("how", ["vmap", "jacrev", "is_grads_batched"])
def test_gradients_in_batches_are_refused_with_what_to_do_and_work_in_a_pause(how):
    model = trained(MultiBalance(3))

    def call() -> Tensor:
        if how == "vmap":
            return vmap(grad(total(model)), in_dims=(None, 0))(parameters(model), X.unsqueeze(1))["bottom.weight"]
        if how == "jacrev":
            return jacrev(lambda values: torch.stack(functional_call(model, values, (X,))))(parameters(model))[
                "bottom.weight"
            ]
        (found,) = torch.autograd.grad(
            model(X), model.bottom.weight, grad_outputs=list(torch.eye(3)), is_grads_batched=True
        )
        return found

    before = traces(model)
    with pytest.raises(RuntimeError, match=r"there is no batch.*with equipoise\.paused\(model\)"):
        call()
    with paused(model):
        found = call()
    assert all(torch.equal(*pair) for pair in zip(before, traces(model), strict=True))
    if how == "vmap":
        expected = torch.stack([sum(plain_gradients(row.unsqueeze(0))) for row in X])
    else:
        expected = torch.stack(plain_gradients())
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.func.jvp scripts decompositions
def test_forward_mode_crosses_a_fork_as_the_identity():
    model, plain = trained(MultiBalance(3)), Towers(None)
    for found, expected in zip(
        *(jvp(lambda x, m=m: torch.stack(m(x)), (X,), (X.flip(0),)) for m in (model, plain)), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fork: pickle.loads(pickle.dumps(fork))])
def test_a_copy_made_in_a_pause_is_not_paused(copied) -> None:
    fork = MultiBalance(3)
    with paused(fork):
        other = copied(fork)
    assert other.pauses == 0
