"""Each way to misuse an optimizer with backward(losses) ends in one message that says what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from equipoise.optim import PUB, AdaTask, Clippy, MetaBalance
from tests.optim.task_nets import Net, pub, train, values


def test_step_without_backward_says_what_to_call():
    net = Net(2)
    optimizer = pub(net)
    with pytest.raises(RuntimeError, match=r"expected a call of backward\(losses\)"):
        optimizer.step()
    sum(net.losses(0)).backward()
    with pytest.raises(RuntimeError, match=r"Let it take the place of sum\(losses\).backward\(\)"):
        optimizer.step()
    optimizer.zero_grad()
    train(net, optimizer, [0])
    with pytest.raises(RuntimeError, match="since its last step"):
        optimizer.step()


def test_a_backward_on_the_loss_itself_is_noticed():
    net = Net(2)
    optimizer = pub(net)
    sum(net.losses(0)).backward()
    with pytest.raises(RuntimeError, match="did not come from it"):
        optimizer.backward(net.losses(0))


def test_a_forgotten_zero_grad_is_noticed_and_the_models_own_will_do():
    net = Net(2)
    optimizer = pub(net)
    train(net, optimizer, [0])
    with pytest.raises(RuntimeError, match=r"used in a step already. Call zero_grad\(\)"):
        optimizer.backward(net.losses(1))
    net.zero_grad()
    optimizer.backward(net.losses(1))
    optimizer.step()


def test_zeroed_instead_of_dropped_gradients_are_fine():
    nets = Net(2), Net(2)
    a, b = map(pub, nets)
    train(nets[0], a, range(4))
    for step in range(4):
        b.zero_grad(set_to_none=False)
        b.backward(nets[1].losses(step))
        b.step()
    assert torch.equal(values(nets[0]), values(nets[1]))


@pytest.mark.parametrize("change", ["clip", "replace"])
def test_changed_gradients_of_shared_parameters_are_noticed(change):
    net = Net(2)
    optimizer = pub(net)
    optimizer.backward(net.losses(0))
    if change == "clip":
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    else:
        net.bottom.bias.grad = torch.zeros(5)
    with pytest.raises(RuntimeError, match="Limit the step with Clippy instead"):
        optimizer.step()


def test_unscaling_by_hand_is_noticed():
    net = Net(2)
    optimizer, scaler = pub(net), torch.amp.GradScaler("cpu")
    optimizer.backward([scaler.scale(loss) for loss in net.losses(0)])
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"call scaler.step\(optimizer\) without calling scaler.unscale_"):
        scaler.step(optimizer)


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (lambda a, b: [a, b, a], ValueError, "expected 2 losses, as from the start, found 3"),
        (lambda *_: [], ValueError, "expected 2 losses, as from the start, found 0"),
        (
            lambda a, b: {"click": a, "buy": b},
            ValueError,
            r"named after the tasks \(0, 1\), found 'click', 'buy'. Give",
        ),
        (lambda a, b: {a, b}, TypeError, "found set. Pass one loss per task, always in the same order"),
        (lambda *_: 0.5, TypeError, "a dict of them by task, or a tensor of shape .tasks., found float"),
        (lambda a, _: [a, 0.5], TypeError, "loss of task 1 must be a tensor, or None; found float"),
        (lambda a, b: [a, torch.stack((a, b))], ValueError, r"loss of task 1 must be a scalar, found shape \(2,\)"),
        (lambda a, b: a + b, ValueError, r"found a tensor of shape \(\)"),
        (lambda a, b: torch.stack((a, b)).detach(), ValueError, "does not require grad"),
    ],
)
def test_wrong_losses_are_named(losses, error, message):
    net = Net(2)
    optimizer = pub(net)
    train(net, optimizer, [0])
    optimizer.zero_grad()
    with pytest.raises(error, match=message):
        optimizer.backward(losses(*net.losses(1)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_reentrant_checkpoints_hide_the_parameters_and_are_refused(reentrant, monkeypatch):
    net, plain = Net(2), Net(2)
    optimizer, forward = pub(net), net.bottom.forward
    monkeypatch.setattr(net.bottom, "forward", lambda z: checkpoint(forward, z, use_reentrant=reentrant))
    if reentrant:
        with pytest.raises(RuntimeError, match="Pass use_reentrant=False"):
            train(net, optimizer, [0])
    else:
        train(net, optimizer, range(3))
        train(plain, pub(plain), range(3))
        assert torch.equal(values(net), values(plain))


def test_losses_may_come_as_one_tensor():
    nets = Net(2), Net(2)
    a, b = map(pub, nets)
    for step in range(4):
        train(nets[0], a, [step])
        b.zero_grad()
        b.backward(torch.stack(nets[1].losses(step)))
        b.step()
    torch.testing.assert_close(values(nets[0]), values(nets[1]))


@pytest.mark.parametrize("make", [PUB, AdaTask])
@pytest.mark.parametrize(
    ("shared", "error", "message"),
    [
        (lambda _: [], ValueError, "must hold the parameters that all tasks use, found none"),
        (lambda _: [nn.Parameter(torch.ones(7))], ValueError, r"a tensor of shape \(7,\) that is not"),
        (lambda _: ["bottom.weight"], ValueError, "found str that is not"),
        (lambda net: net.bottom.weight, TypeError, "put it into a list"),
    ],
)
def test_wrong_shared_parameters_are_named(make, shared, error, message):
    net = Net(2)
    with pytest.raises(error, match=message):
        make(torch.optim.Adam(net.parameters()), shared=shared(net))


@pytest.mark.parametrize("make", [PUB, AdaTask])
def test_optimizers_without_a_rule_are_named(make):
    net = Net(2)
    with pytest.raises(TypeError, match=r"one of torch.optim.SGD, .* found NAdam"):
        make(torch.optim.NAdam(net.parameters()), shared=net.shared())
    with pytest.raises(TypeError, match="found Clippy"):
        Clippy(Clippy(torch.optim.Adam(net.parameters())))
    inner = pub(net)
    with pytest.raises(TypeError, match="found PUB"):
        make(inner, shared=net.shared())


def test_options_that_do_not_fit_are_named():
    net = Net(2)
    with pytest.raises(ValueError, match=r"form must be one of 'ours', 'matched', .*, found 'x'"):
        pub(net, form="x")
    with pytest.raises(ValueError, match="update_every must be a whole number of at least 1, found 0"):
        pub(net, update_every=0)
    with pytest.raises(ValueError, match="names that differ"):
        pub(net, tasks=["a", "a"])
    with pytest.raises(ValueError, match="task_weights must be positive and finite, found"):
        pub(net, task_weights=[1, 0])
    with pytest.raises(ValueError, match=r"one number for each of a, b, found \[1.0\]"):
        pub(net, tasks=["a", "b"], task_weights=[1])
    with pytest.raises(ValueError, match="capturable"):
        PUB(torch.optim.Adam(net.parameters(), capturable=True), shared=net.shared())
    with pytest.raises(TypeError, match="lr must be a number, found a tensor"):
        PUB(torch.optim.Adam(net.parameters(), lr=torch.tensor(0.1)), shared=net.shared())
    with pytest.raises(ValueError, match="SGD without dampening"):
        AdaTask(torch.optim.SGD(net.parameters(), momentum=0.9, dampening=0.1), shared=net.shared())
    inner = AdaTask(torch.optim.Adam(net.parameters()), shared=net.shared())
    with pytest.raises(ValueError, match="must share the same parameters, found 1 in PUB and 3"):
        PUB(inner, shared=[net.bottom.weight])
    for form in ("ours", "literal", "shipped"):
        with pytest.raises(ValueError, match=f"form must be one of 'matched', 'authors', found '{form}': "):
            PUB(inner, shared=net.shared(), form=form)


def test_a_state_dict_of_another_optimizer_is_refused():
    net = Net(2)
    with pytest.raises(ValueError, match=r"with the key 'pub' in its first group.*found the keys \['amsgrad', "):
        pub(net).load_state_dict(torch.optim.Adam(net.parameters()).state_dict())
    three = pub(Net(2), tasks=["a", "b", "c"])
    with pytest.warns(
        UserWarning, match=r"leaves out the saved state of tasks that it does not have: c \(it has a, b\)"
    ):
        pub(net, tasks=["a", "b"]).load_state_dict(three.state_dict())


def test_several_ranks_without_a_word_on_who_trains_together_are_refused_at_construction(monkeypatch):
    net = Net(2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"average of its tasks' gradients over the ranks, found 2 .* Pass data_par"):
        pub(net)


def test_a_module_that_is_not_data_parallel_is_refused():
    net = Net(2)
    with pytest.raises(ValueError, match=r"must hold a DistributedDataParallel module.*found Net without one"):
        pub(net, data_parallel=net)


@pytest.mark.parametrize("inside", [AdaTask, MetaBalance])
def test_preferences_of_what_pub_wraps_are_refused_since_pub_would_undo_them(inside):
    net = Net(2)
    weighed = inside(torch.optim.Adam(net.parameters()), shared=net.shared(), task_weights=[9, 1])
    assert "task_weights=[9.0, 1.0])" in repr(weighed)
    with pytest.raises(ValueError, match=rf"task_weights of the {inside.__name__} inside .* give them to PUB"):
        PUB(weighed, shared=net.shared())
    with pytest.raises(ValueError, match=r"list of 2 positive finite numbers, one for each of a, b; found \[9.0\]"):
        inside(torch.optim.Adam(net.parameters()), shared=net.shared(), tasks=["a", "b"], task_weights=[9])


def test_it_reads_like_its_constructor():
    optimizer = PUB(torch.optim.Adam((net := Net(2)).parameters()), shared=net.shared())
    assert repr(optimizer).startswith("PUB(Adam (")
    expected = "shared=[3 parameters], update_every=10, form='ours', solve_on='auto')"
    assert expected in repr(optimizer)
    inner = AdaTask(torch.optim.Adam(net.parameters()), shared=net.shared())
    assert "form='matched')" in repr(PUB(inner, shared=net.shared()))
