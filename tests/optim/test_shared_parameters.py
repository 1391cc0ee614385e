"""``shared="auto"`` finds what the tasks share; a list that differs, or a fork beside PUB, is named once."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch

from equipoise import MultiBalance
from equipoise.optim import PUB, AdaTask
from tests.optim.task_nets import Net, train, values

MAKERS = {
    "pub": lambda o, shared: PUB(o, shared=shared, update_every=2),
    "pub-literal": lambda o, shared: PUB(o, shared=shared, update_every=2, form="literal"),
    "adatask": lambda o, shared: AdaTask(o, shared=shared),
    "pub-adatask": lambda o, shared: PUB(AdaTask(o, shared=shared), shared=shared, update_every=2),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_auto_trains_as_with_the_list_and_resumes(maker):
    (net, other), make = (Net(3), Net(3)), MAKERS[maker]
    auto = make(torch.optim.Adam(net.parameters(), lr=0.01), "auto")
    listed = make(torch.optim.Adam(other.parameters(), lr=0.01), other.shared())
    train(net, auto, range(5))
    train(other, listed, range(5))
    assert [id(p) for p in auto.shared] == [id(p) for p in net.shared()]
    assert torch.equal(values(net), values(other))
    again = Net(3)
    again.load_state_dict(net.state_dict())
    resumed = make(torch.optim.Adam(again.parameters(), lr=0.01), "auto")
    resumed.load_state_dict(copy.deepcopy(auto.state_dict()))
    train(again, resumed, range(5, 9))
    train(net, auto, range(5, 9))
    assert torch.equal(values(net), values(again))


def test_pub_takes_over_what_adatask_inside_has_been_told():
    net = Net(2)
    inner = AdaTask(torch.optim.Adam(net.parameters()), shared=net.shared())
    optimizer = PUB(inner, shared="auto")
    assert optimizer.shared == inner.shared == net.shared()
    other = Net(2)
    inner = AdaTask(torch.optim.Adam(other.parameters()), shared="auto")
    assert PUB(inner, shared=other.shared()).shared == inner.shared == other.shared()


def test_auto_with_nothing_in_common_says_what_is_needed():
    net = Net(2)
    optimizer = PUB(torch.optim.Adam(net.parameters()), shared="auto")
    with pytest.raises(RuntimeError, match=r"at least two tasks reach, found none in the graph of 1 losses. Let at"):
        optimizer.backward([net.losses(0)[0], None])
    with pytest.raises(ValueError, match=r"must be a list of parameters, or .auto.; found 'all'"):
        PUB(torch.optim.Adam(net.parameters()), shared="all")


@pytest.mark.parametrize("make", [PUB, AdaTask])
@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (
            lambda net: net.parameters(),
            r"shared holds 4 parameters that one task alone reaches, a tower's: \(1,\), \(1, 5\), ",
        ),
        (lambda net: [*net.shared(), *net.towers[1].parameters()], r"2 parameters .*: \(1,\), \(1, 5\) \(of 1\)"),
        (
            lambda net: net.table.parameters(),
            r"shared leaves out 2 parameters that several tasks reach: \(5,\), \(5, 6\)",
        ),
        (lambda net: net.towers[0].parameters(), r"shared leaves out 3 parameters"),
    ],
)
def test_a_list_that_is_not_what_the_tasks_share_is_named_once(make, shared, message):
    net = Net(2)
    optimizer = make(torch.optim.Adam(net.parameters()), shared=shared(net))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(net, optimizer, range(3))
    found = [str(warning.message) for warning in caught]
    assert any(re.search(message, text) for text in found)
    assert len(found) == len(set(found))


def test_with_a_task_absent_in_the_first_step_nothing_is_said():
    net = Net(2)
    optimizer = PUB(torch.optim.Adam(net.parameters()), shared=net.shared())
    train(net, optimizer, range(3), absent=(1,))


def test_a_compiled_graph_hides_what_the_tasks_share():
    net = Net(2)
    call = torch.compile(
        lambda: torch.cat([tower(net.bottom(torch.ones(1, 6))) for tower in net.towers]), backend="aot_eager"
    )
    optimizer = PUB(torch.optim.Adam(net.parameters()), shared=net.bottom.parameters())
    optimizer.backward(list(call().flatten().unbind()))  # without a warning
    auto = PUB(torch.optim.Adam(net.parameters()), shared="auto")
    net.zero_grad()
    with pytest.raises(RuntimeError, match=r"cannot see into a graph that torch.compile made for several tasks"):
        auto.backward(list(call().flatten().unbind()))


def test_a_fork_beside_pub_is_named():
    net = Net(2)
    fork = MultiBalance(["click", "buy"])
    optimizer = PUB(torch.optim.Adam(net.parameters()), shared=net.shared())
    z = fork(torch.tanh(net.bottom(net.table(torch.tensor([[1, 2]])).flatten(1))))
    losses = [tower(branch).square().mean() for tower, branch in zip(net.towers, z, strict=True)]
    with pytest.warns(UserWarning, match=r"PUB balances .* at a MultiBalance over click, buy. Take out one of them"):
        optimizer.backward(losses)


def test_one_task_shares_nothing_and_trains_as_the_wrapped_optimizer():
    net, plain = Net(1), Net(1)
    optimizer = PUB(torch.optim.SGD(net.parameters(), lr=0.1), shared="auto")
    train(net, optimizer, range(3))
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3):
        reference.zero_grad()
        plain.losses(step)[0].backward()
        reference.step()
    assert torch.equal(values(net), values(plain))
