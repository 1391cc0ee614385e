"""Leaves that the optimizer does not hold get what ``sum(losses).backward()`` gives them, once, in every form."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equipoise.optim import PUB, AdaTask
from tests.optim.task_nets import ACCUMULATING, WRAPPERS, Net, train, values

thorough = settings(max_examples=60, deadline=None, derandomize=True, database=None)


class Wide(nn.Module):
    """A shared layer over a leaf that is no parameter, and towers over another one."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.bottom = nn.Linear(4, 3)
        self.towers = nn.ModuleList(nn.Linear(5, 1) for _ in range(tasks))

    def losses(self, below: torch.Tensor, beside: torch.Tensor, absent: set[int]) -> list[torch.Tensor | None]:
        z = torch.cat((torch.tanh(self.bottom(below)), beside), 1)
        found = [(task + 1) * tower(z).square().mean() for task, tower in enumerate(self.towers)]
        return [None if task in absent else loss for task, loss in enumerate(found)]


@thorough
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(list(WRAPPERS)), st.integers(1, 4), st.booleans(),
    st.data(),
)  # fmt: skip
def test_inputs_get_the_gradient_of_the_plain_sum(seed, tasks, wrapper, steps, frozen, data):
    net = Wide(tasks)
    absent = data.draw(st.sets(st.integers(0, tasks - 1), max_size=tasks - 1))
    net.bottom.requires_grad_(not frozen)
    optimizer = WRAPPERS[wrapper](torch.optim.Adam(net.parameters(), lr=0.01), list(net.bottom.parameters()))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        leaves = [torch.randn(6, size, generator=generator).requires_grad_() for size in (4, 2)]
        expected = torch.autograd.grad(sum(loss for loss in net.losses(*leaves, absent) if loss is not None), leaves)
        optimizer.zero_grad()
        optimizer.backward(net.losses(*leaves, absent))
        torch.testing.assert_close([leaf.grad for leaf in leaves], list(expected), rtol=1e-5, atol=1e-7)
        optimizer.step()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_their_hooks_see_the_whole_sum_once_a_step(wrapper):
    net = Net(3)
    dense = [p for p in net.parameters() if p is not net.table.weight]
    optimizer = WRAPPERS[wrapper](torch.optim.Adam(dense, lr=0.01), list(net.bottom.parameters()))
    seen = []
    net.table.weight.register_hook(lambda grad: seen.append(("gradient", grad.clone())))
    net.table.weight.register_post_accumulate_grad_hook(lambda p: seen.append(("after", p.grad.clone())))
    for step in range(5):
        expected = torch.autograd.grad(sum(Net.losses(net, step)), net.table.weight)[0]
        seen.clear()
        net.table.weight.grad = None
        train(net, optimizer, [step])
        assert [name for name, _ in seen] == ["gradient", "after"]
        for _, gradient in seen:
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("layer", ["table", "extra"])
def test_an_optimizer_in_the_backward_pass_steps_after_all_passes(wrapper, layer):
    """Its step changes a weight in place that the other passes still need, which autograd would refuse."""
    net = Net(2)
    net.extra = nn.Linear(6, 6)
    forward = net.bottom.forward
    net.bottom.forward = lambda x: forward(net.extra(x))
    held = [*net.bottom.parameters(), *net.towers.parameters()]
    optimizer = WRAPPERS[wrapper](torch.optim.Adam(held, lr=0.01), list(net.bottom.parameters()))
    inside = {p: torch.optim.SGD([p], lr=0.1) for p in getattr(net, layer).parameters()}
    count = []

    def step_at_once(p):
        count.append(p)
        inside[p].step()
        inside[p].zero_grad()

    for p in inside:
        p.register_post_accumulate_grad_hook(step_at_once)
    before = [p.detach().clone() for p in inside]
    train(net, optimizer, range(5))
    assert len(count) == 5 * len(inside)
    assert all(not torch.equal(p, old) for p, old in zip(inside, before, strict=True))


@pytest.mark.parametrize("wrapper", ACCUMULATING)
def test_accumulated_micro_batches_add_up_for_them_too(wrapper):
    net = Net(2)
    dense = [p for p in net.parameters() if p is not net.table.weight]
    optimizer = WRAPPERS[wrapper](torch.optim.Adam(dense, lr=0.01), list(net.bottom.parameters()))
    for step in range(4):
        net.table.weight.grad = None
        optimizer.zero_grad()
        expected = torch.autograd.grad(sum([*net.losses(step), *net.losses(step + 50)]), net.table.weight)[0]
        optimizer.backward(net.losses(step))
        optimizer.backward(net.losses(step + 50))
        optimizer.step()
        torch.testing.assert_close(net.table.weight.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "passes"), [(PUB, 1 + 1 + 1), (partial(PUB, solve_on="all"), 1 + 3 + 1), (AdaTask, 3 * 3)]
)
def test_without_other_leaves_there_is_no_further_pass(make, passes, monkeypatch):
    net, calls = Net(3), []
    optimizer = make(torch.optim.Adam(net.parameters()), shared=net.shared())
    whole = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *args, **options: calls.append(1) or whole(*args, **options))
    train(net, optimizer, range(3))
    assert len(calls) == passes


@pytest.mark.parametrize("make", [PUB, AdaTask])
@pytest.mark.parametrize("frozen", [range(4), range(3, 30), range(30)])
def test_shared_layers_may_be_frozen_at_any_time_and_towers_train_on(make, frozen):
    net, plain = Net(2), Net(2)
    optimizer = make(torch.optim.SGD(net.parameters(), lr=0.1), shared=net.shared())
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(12):
        before = [p.detach().clone() for p in net.shared()]
        for p in (*net.shared(), *plain.shared()):
            p.requires_grad_(step not in frozen)
        train(net, optimizer, [step])
        if step in frozen:
            assert all(torch.equal(p, old) for p, old in zip(net.shared(), before, strict=True))
        reference.zero_grad()
        sum(plain.losses(step)).backward()
        reference.step()
    if len(frozen) == 30:
        assert torch.equal(values(net), values(plain))
