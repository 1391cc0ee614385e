"""`total(losses).backward()` does what `backward(losses)` does, for engines that call `backward()` themselves."""

import pytest
import torch

from equipoise.optim import AdaTask
from tests.optim.task_nets import OPTIMIZERS, WRAPPERS, Net, pub, train, values

STEPS = range(7)
ABSENT = {2: (0,), 4: (0, 1), 5: (0, 1, 2)}


def nets(kind: str = "adam", wrapper: str = "pub-ours"):
    for _ in range(2):
        net = Net(3)
        yield net, WRAPPERS[wrapper](OPTIMIZERS[kind](net.parameters()), net.shared())


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_it_trains_as_backward_does_to_the_last_bit(kind, wrapper):
    (net, optimizer), (other, expected) = nets(kind, wrapper)
    for step in STEPS:
        absent = ABSENT.get(step, ())
        optimizer.zero_grad()
        losses = net.losses(step, absent)
        total = optimizer.total(losses)
        assert total.item() == pytest.approx(sum(loss.item() for loss in losses if loss is not None), rel=1e-6)
        total.backward()
        optimizer.step()
        train(other, expected, [step], absent)
    assert torch.equal(values(net), values(other))


def test_micro_batches_add_up_with_their_factor():
    (net, optimizer), (other, expected) = nets()
    for step in STEPS:
        optimizer.zero_grad()
        expected.zero_grad()
        for part in (step, step + 100):
            (optimizer.total(net.losses(part)) / 2).backward()
            expected.backward([loss / 2 for loss in other.losses(part)])
        optimizer.step()
        expected.step()
    assert torch.equal(values(net), values(other))


def test_under_a_grad_scaler_steps_are_those_without():
    (net, optimizer), (other, expected) = nets()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in STEPS:
        optimizer.zero_grad()
        scaler.scale(optimizer.total(net.losses(step))).backward()
        scaler.step(optimizer)
        scaler.update()
    train(other, expected, STEPS)
    torch.testing.assert_close(values(net), values(other), rtol=1e-6, atol=1e-7)


def test_the_losses_graphs_are_reached_by_the_optimizer_alone():
    net = Net(3)
    optimizer = AdaTask(torch.optim.SGD(net.parameters(), lr=0.1), shared=net.shared())
    calls = []
    losses = net.losses(0)
    for loss in losses:
        loss.register_hook(lambda _: calls.append(None))
    total = optimizer.total(losses)
    assert calls == []
    total.backward()
    assert len(calls) == len(losses)


def test_what_backward_refuses_is_refused_before_the_engine_goes_backward():
    net = Net(3)
    optimizer = pub(net)
    with pytest.raises(ValueError, match="must be a scalar, found shape"):
        optimizer.total([torch.ones(2, requires_grad=True)])


def test_a_second_backward_is_an_error():
    net = Net(2)
    total = pub(net).total(net.losses(0))
    total.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()
