"""Clippy's one factor per tensor, alone and inside the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from equipoise.optim import PUB, AdaTask, Clippy


def step(optimizer, p, gradient):
    optimizer.zero_grad()
    (p * torch.tensor(gradient)).sum().backward()
    optimizer.step()


def test_the_tightest_element_decides_for_its_tensor_and_for_no_other():
    a, b = nn.Parameter(torch.tensor([1.0, 10.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = Clippy(torch.optim.SGD([a, b], lr=1.0), relative=0.1, absolute=0.0)
    (a * torch.tensor([0.4, 0.4])).sum().backward()
    (b * 0.01).sum().backward()
    optimizer.step()
    torch.testing.assert_close(a.data, torch.tensor([0.9, 9.9]))
    torch.testing.assert_close(b.data, torch.tensor([0.99]))


def test_nothing_to_shrink_leaves_every_bit_alone():
    p, q = (nn.Parameter(torch.linspace(-1, 1, 11)) for _ in range(2))
    clippy, plain = Clippy(torch.optim.AdamW([p], lr=1e-3)), torch.optim.AdamW([q], lr=1e-3)
    for k in range(5):
        step(clippy, p, [float(k - 2)] * 11)
        step(plain, q, [float(k - 2)] * 11)
        assert torch.equal(p, q)


def test_zero_over_zero_is_no_limit():
    p = nn.Parameter(torch.tensor([0.0, 1.0]))
    step(Clippy(torch.optim.SGD([p], lr=1.0), relative=0.5, absolute=0.0), p, [0.0, 0.25])
    assert torch.equal(p.data, torch.tensor([0.0, 0.75]))


def test_a_zero_weight_without_absolute_limit_holds_its_tensor():
    p = nn.Parameter(torch.tensor([0.0, 1.0]))
    step(Clippy(torch.optim.SGD([p], lr=1.0), relative=0.5, absolute=0.0), p, [1.0, 0.25])
    assert torch.equal(p.data, torch.tensor([0.0, 1.0]))


def test_decoupled_weight_decay_is_not_shrunk():
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = Clippy(torch.optim.AdamW([p], lr=0.5, weight_decay=0.1), relative=0.01, absolute=0.0)
    step(optimizer, p, [1.0])
    torch.testing.assert_close(p.data, torch.tensor([0.95 - 0.01]))


def test_the_state_goes_on_as_without_it():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    clippy, plain = Clippy(torch.optim.Adam([p]), relative=0.0, absolute=1e-9), torch.optim.Adam([q])
    for gradient in ([1.0, 2, 3], [3.0, -1, 0]):
        step(clippy, p, gradient)
        step(plain, q, gradient)
    assert torch.equal(clippy.state[p]["exp_avg"], plain.state[q]["exp_avg"])
    torch.testing.assert_close(p.data, torch.ones(3), atol=1e-8, rtol=0)


@pytest.mark.parametrize("wrap", ["pub", "adatask", "pub-adatask"])
def test_inside_others_it_bounds_the_joint_step_of_every_tensor(wrap):
    torch.manual_seed(0)
    shared, head = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
    inner = Clippy(torch.optim.Adam([shared, head], lr=1.0), relative=0.02, absolute=1e-3)
    optimizer = inner if wrap == "pub" else AdaTask(inner, shared=[shared])
    optimizer = optimizer if wrap == "adatask" else PUB(optimizer, shared=[shared], update_every=1)
    for _ in range(4):
        before = [shared.detach().clone(), head.detach().clone()]
        optimizer.zero_grad()
        optimizer.backward([(shared * torch.randn(5)).sum(), (shared * head * torch.randn(5)).sum()])
        optimizer.step()
        for old, new in zip(before, (shared, head), strict=True):
            share = (new - old).abs() / (0.02 * old.abs() + 1e-3)
            torch.testing.assert_close(share.max(), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_a_closure_is_called_once():
    p = nn.Parameter(torch.ones(1))
    optimizer = Clippy(torch.optim.SGD([p], lr=0.1))
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 1
    assert calls == [1]
    assert p.item() == pytest.approx(0.8)


def test_negative_limits_are_refused():
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"relative must be at least 0, found -0.1"):
        Clippy(torch.optim.SGD([p], lr=0.1), relative=-0.1)
    with pytest.raises(ValueError, match="absolute must be at least 0, found nan"):
        Clippy(torch.optim.SGD([p], lr=0.1), absolute=float("nan"))
