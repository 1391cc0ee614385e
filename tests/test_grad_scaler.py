"""The factor of a GradScaler belongs to one backward: not to the process, a thread, or the backward after it."""

import copy
import gc
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equipoise.forks import Fork, MultiBalance
from equipoise.grad_scaler import _under_way
from tests.forks.fork_gradients import Towers, random

X = random(3, 8, 6)


def scaled(model: nn.Module, scale: float, x: Tensor = X) -> Tensor:
    return torch.amp.GradScaler("cpu", init_scale=scale).scale(sum(model(x)))


@pytest.fixture
def plain() -> Towers:
    model = Towers(MultiBalance(3))
    sum(model(X)).backward()
    return model


def assert_unscaled(model: Towers, plain: Towers, scale: float) -> None:
    torch.testing.assert_close(model.fork.averages, plain.fork.averages)
    torch.testing.assert_close(model.fork.last_weights, plain.fork.last_weights)
    torch.testing.assert_close(model.bottom.weight.grad / scale, plain.bottom.weight.grad)


@pytest.mark.parametrize("first", [2.0**16, 1.0])
def test_a_backward_in_another_thread_in_the_middle_of_one_changes_neither(plain, first):
    one, two = Towers(MultiBalance(3)), Towers(MultiBalance(3))
    midway, go_on = threading.Event(), threading.Event()
    z = torch.tanh(one.bottom(X))
    branches = one.fork(z)

    def hold(_: Tensor) -> None:
        midway.set()
        go_on.wait(20)

    branches[0].register_hook(hold)
    total = sum(
        10.0**m * tower(b).square().mean() for m, (tower, b) in enumerate(zip(one.towers, branches, strict=True))
    )
    loss = total if first == 1 else torch.amp.GradScaler("cpu", init_scale=first).scale(total)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    assert midway.wait(20)
    scaled(two, 2.0**4).backward()
    go_on.set()
    thread.join()
    assert_unscaled(one, plain, first)
    assert_unscaled(two, plain, 2.0**4)


def test_a_backward_within_a_backward_changes_neither(plain):
    outer, inner = Towers(MultiBalance(3)), Towers(MultiBalance(3))
    losses, loss_within = outer(X), scaled(inner, 2.0**4)
    losses[0].register_hook(lambda _: loss_within.backward())
    torch.amp.GradScaler("cpu", init_scale=2.0**16).scale(sum(losses)).backward()
    assert_unscaled(outer, plain, 2.0**16)
    assert_unscaled(inner, plain, 2.0**4)


def test_an_unscaled_backward_within_a_scaled_one_stays_unscaled(plain):
    outer, inner = Towers(MultiBalance(3)), Towers(MultiBalance(3))
    losses, loss_within = outer(X), sum(inner(X))
    losses[0].register_hook(lambda _: loss_within.backward())
    torch.amp.GradScaler("cpu", init_scale=2.0**16).scale(sum(losses)).backward()
    assert_unscaled(outer, plain, 2.0**16)
    assert_unscaled(inner, plain, 1.0)


class Checkpointed(Towers):
    def __init__(self, depth: int, fork: Fork) -> None:
        super().__init__(fork)
        self.depth = depth

    def forward(self, x: Tensor) -> list[Tensor]:
        call = super().forward
        for _ in range(self.depth):
            call = self.within(call)
        return list(call(x.detach().requires_grad_()))

    @staticmethod
    def within(call):
        return lambda x: checkpoint(lambda y: tuple(call(y)), x, use_reentrant=True)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_change_nothing_while_the_scale_grows(depth):
    plain, model = Towers(MultiBalance(3)), Checkpointed(depth, MultiBalance(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-4) for m in (plain, model)]
    for step in range(4):
        x = random(step, 8, 6)
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(plain(x)).backward()
        scaler.scale(sum(model(x))).backward()
        torch.testing.assert_close(model.bottom.weight.grad / scaler.get_scale(), plain.bottom.weight.grad)
        optimizers[0].step()
        scaler.step(optimizers[1])
        scaler.update()
        torch.testing.assert_close(model.fork.averages, plain.fork.averages)
    assert scaler.get_scale() == 2.0**14


def test_reentrant_checkpoints_without_a_scaler_change_nothing(plain):
    model = Checkpointed(2, MultiBalance(3))
    sum(model(X)).backward()
    assert_unscaled(model, plain, 1.0)


def test_a_backward_that_fails_leaves_nothing_behind(plain):
    model = Towers(MultiBalance(3))
    losses = model(X)

    def stop(_: Tensor) -> None:
        raise ValueError("somebody's hook")

    losses[0].register_hook(stop)
    loss = torch.amp.GradScaler("cpu", init_scale=1024.0).scale(sum(losses))
    with pytest.raises(ValueError, match="somebody's hook"):
        loss.backward()
    gc.collect()
    assert not dict(_under_way)
    model = Checkpointed(2, MultiBalance(3))
    sum(model(X)).backward()
    assert_unscaled(model, plain, 1.0)


def test_nothing_is_kept_of_backwards_that_are_over():
    model = Towers(MultiBalance(3))
    loss = scaled(model, 1024.0)
    loss.backward(retain_graph=True)
    loss.backward()
    assert not dict(_under_way)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_a_compiled_model_in_a_thread_beside_a_scaled_training_stays_unscaled(plain):
    torch._dynamo.reset()
    one, two = Towers(MultiBalance(3)), Towers(MultiBalance(3))
    call = torch.compile(two, backend="aot_eager", fullgraph=True)
    losses = one(X)

    # In the middle of a scaled backward another thread makes a step of its own.
    def beside(_: Tensor) -> None:
        thread = threading.Thread(target=lambda: sum(call(X)).backward())
        thread.start()
        thread.join()

    losses[0].register_hook(beside)
    torch.amp.GradScaler("cpu", init_scale=1024.0).scale(sum(losses)).backward()
    assert_unscaled(one, plain, 1024.0)
    assert_unscaled(two, plain, 1.0)
    torch._dynamo.reset()


def test_the_class_is_wrapped_once_and_says_so():
    before = torch.amp.GradScaler.scale
    copy.deepcopy(MultiBalance(2))
    assert torch.amp.GradScaler.scale is before
    assert before.__wrapped__.__qualname__ == "GradScaler.scale"
    assert "GradScaler.scale" in Fork.__doc__
