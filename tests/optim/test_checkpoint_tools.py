"""Tools that save and load ``state`` and ``param_groups`` alone, such as torch.distributed.checkpoint, lose nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from equipoise.optim import PUB, AdaTask, Clippy, MetaBalance
from tests.optim.task_nets import Net, train, values

NAMES = ["a", "b"]
MAKERS = {
    "clippy": lambda o, shared: PUB(Clippy(o), shared=shared, tasks=NAMES, update_every=2),
    "pub": lambda o, shared: PUB(o, shared=shared, tasks=NAMES, update_every=2),
    "pub-literal": lambda o, shared: PUB(o, shared=shared, tasks=NAMES, update_every=2, form="literal"),
    "adatask": lambda o, shared: AdaTask(o, shared=shared, tasks=NAMES),
    "metabalance": lambda o, shared: MetaBalance(o, shared=shared, tasks=NAMES),
    "pub-adatask": lambda o, shared: PUB(AdaTask(o, shared=shared), shared=shared, tasks=NAMES, update_every=2),
    "pub-auto": lambda o, _: PUB(o, shared="auto", tasks=NAMES, update_every=2),
}
KINDS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "plain-sgd": lambda p: torch.optim.SGD(p, lr=0.05),
}


def make(maker: str, kind: str = "adam"):
    net = Net(2)
    return net, MAKERS[maker](KINDS[kind](net.parameters()), net.shared())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # DCP says so in a single process
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maker", MAKERS)
def test_a_training_goes_on_as_it_would_have(maker, kind, flat, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net, optimizer = make(maker, kind)
    train(net, optimizer, range(5))
    optimizer.zero_grad()
    dcp.save({"optimizer": get_optimizer_state_dict(net, optimizer, options=options)}, checkpoint_id=tmp_path)
    other, resumed = make(maker, kind)
    other.load_state_dict(net.state_dict())
    state = {"optimizer": get_optimizer_state_dict(other, resumed, options=options)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, resumed, state["optimizer"], options=options)
    train(net, optimizer, range(5, 9))
    train(other, resumed, range(5, 9))
    assert torch.equal(values(net), values(other))
    if isinstance(resumed, PUB):
        assert torch.equal(optimizer.last_weights, resumed.last_weights)


@pytest.mark.parametrize("maker", MAKERS)
def test_asking_before_the_first_step_changes_nothing(maker):
    net, optimizer = make(maker)
    other, asked = make(maker)
    get_optimizer_state_dict(other, asked)
    assert torch.equal(values(net), values(other))
    train(net, optimizer, range(5))
    train(other, asked, range(5))
    assert torch.equal(values(net), values(other))


def test_a_state_without_tasks_settled_is_loaded_from_memory():
    net = Net(2)
    optimizer = AdaTask(torch.optim.Adam(net.parameters(), lr=0.01), shared=net.shared())
    train(net, optimizer, range(3))
    optimizer.zero_grad()
    state = copy.deepcopy(get_optimizer_state_dict(net, optimizer))
    other = Net(2)
    other.load_state_dict(net.state_dict())
    resumed = AdaTask(torch.optim.Adam(other.parameters(), lr=0.01), shared=other.shared())
    set_optimizer_state_dict(other, resumed, state)
    train(net, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    assert torch.equal(values(net), values(other))


def test_what_was_saved_does_not_change_with_later_steps():
    net, optimizer = make("pub")
    train(net, optimizer, range(3))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["param_groups"][0]["pub"])
    train(net, optimizer, range(3, 6))
    after = saved["param_groups"][0]["pub"]
    assert before["steps"] == after["steps"] == 3
    assert torch.equal(before["alpha"], after["alpha"])


def test_a_step_without_backward_is_refused_as_before_where_a_learning_rate_is_set():
    _, optimizer = make("pub")
    with pytest.raises(RuntimeError, match=r"expected a call of backward\(losses\)"):
        optimizer.step()
