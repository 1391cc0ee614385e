"""Losses by the tasks' names, and saved state that follows the names where the tasks are listed in another order."""

from __future__ import annotations

import copy

import pytest
import torch

from equipoise.optim import PUB, AdaTask
from tests.optim.task_nets import Net, train, values

NAMES = ["click", "like", "buy"]
MAKERS = {
    "pub": lambda o, shared, tasks: PUB(o, shared=shared, tasks=tasks, update_every=2),
    "adatask": lambda o, shared, tasks: AdaTask(o, shared=shared, tasks=tasks),
    "pub-adatask": lambda o, shared, tasks: PUB(
        AdaTask(o, shared=shared, tasks=tasks), shared=shared, tasks=tasks, update_every=2
    ),
}


def make(maker: str, tasks=NAMES, kind=torch.optim.Adam):
    net = Net(3)
    return net, MAKERS[maker](kind(net.parameters(), lr=0.01), net.shared(), tasks)


def train_by_name(net, optimizer, steps, names=NAMES, absent=()):
    for step in steps:
        optimizer.zero_grad()
        losses = dict(zip(NAMES, net.losses(step), strict=True))
        optimizer.backward({name: losses[name] for name in names if name not in absent})
        optimizer.step()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("tasks", [NAMES, None])
def test_losses_by_name_are_those_of_the_list_in_any_order(maker, tasks):
    net, optimizer = make(maker, tasks)
    other, expected = make(maker)
    optimizer.backward(dict(zip(NAMES, net.losses(0), strict=True)))
    optimizer.step()
    assert list(optimizer.tasks) == NAMES
    train_by_name(net, optimizer, range(1, 6), names=NAMES[::-1])
    train(other, expected, range(6))
    assert torch.equal(values(net), values(other))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_name_that_is_left_out_is_an_absent_task(maker):
    net, optimizer = make(maker)
    other, expected = make(maker)
    train_by_name(net, optimizer, range(6), absent=("like",))
    train(other, expected, range(6), absent=(1,))
    assert torch.equal(values(net), values(other))


def test_losses_by_name_go_through_total_and_a_generator_is_taken():
    net, optimizer = make("pub")
    other, expected = make("pub")
    for step in range(4):
        optimizer.zero_grad()
        optimizer.total(dict(zip(NAMES, net.losses(step), strict=True))).backward()
        optimizer.step()
        expected.zero_grad()
        expected.backward(loss for loss in other.losses(step))
        expected.step()
    assert torch.equal(values(net), values(other))


def test_an_unknown_name_is_refused():
    net, optimizer = make("pub")
    a, b, c = net.losses(0)
    with pytest.raises(ValueError, match=r"named after the tasks \(click, like, buy\), found 'bye'. Leave out"):
        optimizer.backward({"click": a, "like": b, "bye": c})


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop])
def test_a_state_loaded_with_the_tasks_in_another_order_goes_on_as_it_would_have(maker, kind):
    net, optimizer = make(maker, kind=kind)
    train(net, optimizer, range(5))
    other, loaded = make(maker, ["buy", "click", "like"], kind=kind)
    other.load_state_dict(net.state_dict())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert loaded.tasks == ("buy", "click", "like")
    if isinstance(loaded, PUB):
        assert dict(zip(loaded.tasks, loaded.last_weights.tolist(), strict=True)) == dict(
            zip(optimizer.tasks, optimizer.last_weights.tolist(), strict=True)
        )
        order = [2, 0, 1]
        assert torch.equal(loaded.last_gram, optimizer.last_gram[order][:, order])
    train_by_name(net, optimizer, range(5, 9))
    train_by_name(other, loaded, range(5, 9))
    torch.testing.assert_close(values(net), values(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_new_task_starts_fresh_and_a_lost_one_is_named(maker):
    net, optimizer = make(maker)
    train(net, optimizer, range(5))
    fresh, loaded = make(maker, ["like", "share", "click"])
    with pytest.warns(UserWarning, match=r"leaves out the saved state of tasks that it does not have: buy \(it has"):
        loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if isinstance(loaded, PUB):
        weights = optimizer.last_weights
        assert loaded.last_weights.tolist() == [weights[1].item(), 1.0, weights[0].item()]
        assert loaded.last_present.tolist() == [True, False, True]
    if maker != "pub":
        old, new = optimizer.state[net.bottom.weight], loaded.state[fresh.bottom.weight]
        assert torch.equal(new["exp_avg"][0], old["exp_avg"][1])
        assert torch.equal(new["exp_avg"][2], old["exp_avg"][0])
        assert new["step"].tolist() == [5.0, 0.0, 5.0]
        assert not new["exp_avg"][1].any()
    train(fresh, loaded, range(5, 8))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_state_without_names_is_matched_by_place(maker):
    net, optimizer = make(maker, None)
    train(net, optimizer, range(5))
    other, loaded = make(maker)
    other.load_state_dict(net.state_dict())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, range(5, 8))
    train(other, loaded, range(5, 8))
    assert loaded.tasks == tuple(NAMES)
    assert torch.equal(values(net), values(other))


def test_a_state_without_names_of_another_number_of_tasks_is_refused():
    net, optimizer = make("pub", None)
    train(net, optimizer, range(3))
    two = PUB(torch.optim.Adam((other := Net(3)).parameters()), shared=other.shared(), tasks=["a", "b"])
    with pytest.raises(ValueError, match=r"Expected the state of 2 tasks \(a, b\), found that of 3 \(0, 1, 2\)"):
        two.load_state_dict(optimizer.state_dict())
