"""Properties of all optimizers with backward(losses): schedules, odd cases, resuming, no side effects."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from equipoise.optim import PUB, AdaTask, Clippy
from equipoise.optim.forms import FORMS
from tests.optim.task_nets import ACCUMULATING, OPTIMIZERS, SPANNING, WRAPPERS, Net, points, pub, train, values


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_with_one_task_it_is_the_wrapped_optimizer_to_the_last_bit(kind, wrapper):
    ours, plain = Net(1), Net(1)
    optimizer = WRAPPERS[wrapper](OPTIMIZERS[kind](ours.parameters()), ours.shared())
    reference = OPTIMIZERS[kind](plain.parameters())
    for step in range(12):
        train(ours, optimizer, [step])
        reference.zero_grad()
        plain.losses(step)[0].backward()
        reference.step()
        assert torch.equal(values(ours), values(plain))


@pytest.mark.parametrize(("every", "solves"), [(1, range(12)), (3, (1, 4, 7, 10)), (10, (1, 11))])
def test_alpha_is_solved_in_the_steps_1_plus_multiples_of_k(every, solves):
    net = Net(2)
    optimizer = PUB(torch.optim.Adam(net.parameters()), shared=net.shared(), update_every=every)
    seen = []
    before = torch.ones(2, dtype=torch.float64)
    for step in range(12):
        train(net, optimizer, [step])
        if not torch.equal(optimizer.last_weights, before):
            seen.append(step)
        before = optimizer.last_weights.clone()
    assert seen == list(solves)


@pytest.mark.parametrize("form", ["ours", "matched", "authors"])
def test_identical_tasks_get_equal_weights_near_one(form):
    p = nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = PUB(torch.optim.Adam([p], lr=0.1), shared=[p], update_every=1, form=form)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.backward(points(p)([1.0, 2, 3, 4], [1.0, 2, 3, 4], [1.0, 2, 3, 4]))
        optimizer.step()
        torch.testing.assert_close(optimizer.last_weights, torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_opposed_tasks_move_nothing_and_stay_finite(form):
    p = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = PUB(torch.optim.SGD([p], lr=0.1), shared=[p], update_every=1, form=form)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.backward(points(p)([1.0, 1, 1], [-1.0, -1, -1]))
        optimizer.step()
    assert torch.equal(p.data, torch.tensor([1.0, -2.0, 3.0]))
    assert optimizer.last_weights.isfinite().all()
    assert (optimizer.last_weights > 0).all()


def test_the_rounding_error_that_opposed_tasks_of_other_lengths_leave_is_not_blown_up_to_a_step():
    start = torch.tensor([1.0, -2.0, 3.0])
    for length in (0.1, 0.3, 0.7, 1.3):
        p = nn.Parameter(start.clone())
        optimizer = PUB(torch.optim.SGD([p], lr=0.1), shared=[p], update_every=1, form="matched")
        optimizer.backward(points(p)([1.1, 1.3, 1.7], [-1.1 * length, -1.3 * length, -1.7 * length]))
        optimizer.step()
        assert torch.equal(p.data, start)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_task_without_gradient_keeps_its_weight_and_the_others_go_on(kind, wrapper):
    ours = Net(3)
    optimizer = WRAPPERS[wrapper](OPTIMIZERS[kind](ours.parameters()), ours.shared())
    train(ours, optimizer, range(3))
    weights = optimizer.last_weights.clone() if isinstance(optimizer, PUB) else None
    heads = [p.detach().clone() for p in ours.towers[1].parameters()]
    train(ours, optimizer, range(3, 8), absent=(1,))
    assert values(ours).isfinite().all()
    if weights is not None:
        assert optimizer.last_weights[1] == weights[1]
        if wrapper != "pub-shipped":  # which never solves
            assert (optimizer.last_weights[[0, 2]] != weights[[0, 2]]).all()
            assert optimizer.last_present.tolist() == [True, False, True]
        assert (optimizer.last_gram[1] == 0).all()
    for p, before in zip(ours.towers[1].parameters(), heads, strict=True):
        assert torch.equal(p, before)


def test_an_absent_tasks_own_state_does_not_move():
    net = Net(2)
    optimizer = AdaTask(torch.optim.Adam(net.parameters()), shared=net.shared())
    train(net, optimizer, range(2))
    state = optimizer.state[net.bottom.weight]
    before = {name: value.clone() for name, value in state.items()}
    train(net, optimizer, range(2, 5), absent=(0,))
    for name, value in state.items():
        assert torch.equal(value[0], before[name][0]), name
        assert not torch.equal(value[1], before[name][1]), name


@pytest.mark.parametrize("form", ["none", "detached", "zero"])
def test_absent_tasks_may_be_none_or_constants_and_zero_losses_change_no_other(form):
    net, other = Net(3), Net(3)
    a, b = (PUB(torch.optim.SGD(n.parameters(), lr=0.1), shared=n.shared(), update_every=1) for n in (net, other))
    for step in range(3):
        for n, o in ((net, a), (other, b)):
            losses = n.losses(step)
            if n is net or form == "none":
                losses[1] = None
            else:
                losses[1] = losses[1].detach() if form == "detached" else losses[1] * 0
            o.zero_grad()
            o.backward(losses)
            o.step()
    torch.testing.assert_close(values(net), values(other))
    assert a.last_weights[1] == b.last_weights[1] == 1


def test_a_step_without_any_task_moves_nothing():
    net = Net(2)
    optimizer = PUB(torch.optim.Adam(net.parameters()), shared=net.shared())
    train(net, optimizer, range(3))
    before = values(net)
    train(net, optimizer, [3], absent=(0, 1))
    assert torch.equal(values(net), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_spoils_no_shared_parameter_or_state(kind, wrapper, bad):
    net = Net(2)
    optimizer = WRAPPERS[wrapper](OPTIMIZERS[kind](net.parameters()), net.shared())
    for step in range(8):
        optimizer.zero_grad()
        losses = net.losses(step)
        if step in (2, 4):
            losses[1] = losses[1] * bad
        optimizer.backward(losses)
        own_step = [] if wrapper in SPANNING else net.towers[1].parameters()
        for p in own_step:  # towers are the wrapped optimizer's own business, where they are not weighed too
            p.grad.nan_to_num_(0, 0, 0)
        optimizer.step()
    for p in net.shared():
        assert p.isfinite().all()
        assert all(value.isfinite().all() for value in optimizer.state[p].values())
    if isinstance(optimizer, PUB):
        assert optimizer.last_weights.isfinite().all()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resuming_from_a_state_dict_is_exact(kind, wrapper):
    def build():
        net = Net(3)
        return net, WRAPPERS[wrapper](OPTIMIZERS[kind](net.parameters()), net.shared())

    net, optimizer = build()
    train(net, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    train(net, optimizer, range(5, 12))
    again, resumed = build()
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, range(5, 12))
    assert torch.equal(values(net), values(again))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_go_on_as_the_original(wrapper, copied):
    net = Net(2)
    optimizer = WRAPPERS[wrapper](OPTIMIZERS["adam"](net.parameters()), net.shared())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(net, optimizer, range(5))
    other_net, other = copied((net, optimizer))
    train(net, optimizer, range(5, 9))
    train(other_net, other, range(5, 9))
    assert torch.equal(values(net), values(other_net))


def test_learning_rate_schedulers_and_hooks_work_as_on_the_wrapped_optimizer():
    ours, plain = Net(1), Net(1)
    optimizer = PUB(AdaTask(Clippy(OPTIMIZERS["adam"](ours.parameters())), shared=ours.shared()), shared=ours.shared())
    reference = Clippy(OPTIMIZERS["adam"](plain.parameters()))
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=8) for o in (optimizer, reference)]
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("state"))
    for step in range(7):
        train(ours, optimizer, [step])
        reference.zero_grad()
        plain.losses(step)[0].backward()
        reference.step()
        for scheduler in schedulers:
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    optimizer.state_dict()
    assert torch.equal(values(ours), values(plain))
    assert calls == ["step"] * 7 + ["state"]


def test_the_wrapped_optimizer_can_go_on_alone():
    net = Net(2)
    adam = OPTIMIZERS["adam-amsgrad"](net.parameters())
    train(net, PUB(adam, shared=net.shared(), update_every=2), range(5))
    adam.zero_grad()
    sum(net.losses(5)).backward()
    adam.step()
    assert {float(state["step"]) for state in adam.state.values()} == {6.0}


def test_a_group_added_later_is_trained_and_not_shared():
    net, extra = Net(2), nn.Parameter(torch.ones(2))
    optimizer = PUB(torch.optim.Adam(net.parameters(), lr=0.1), shared=net.shared(), update_every=1)
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    optimizer.zero_grad()
    first, second = net.losses(0)
    optimizer.backward([first + extra.sum(), second])
    optimizer.step()
    torch.testing.assert_close(extra.data, torch.full((2,), 0.5))


@pytest.mark.parametrize("wrapper", ACCUMULATING)
def test_two_backwards_before_a_step_add_up(wrapper):
    nets = [Net(2), Net(2)]
    a, b = (WRAPPERS[wrapper](OPTIMIZERS["adam"](net.parameters()), net.shared()) for net in nets)
    for step in range(8):
        a.zero_grad()
        a.backward([one + other for one, other in zip(nets[0].losses(step), nets[0].losses(step + 50), strict=True)])
        a.step()
        b.zero_grad()
        b.backward(nets[1].losses(step))
        b.backward(nets[1].losses(step + 50))
        b.step()
    torch.testing.assert_close(values(nets[0]), values(nets[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad brings it about
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("lr_decay", [0.0, 0.1])
def test_sparse_embedding_gradients_give_the_same_as_dense_ones(wrapper, lr_decay):
    nets = [Net(2, sparse=True), Net(2)]
    for build in (
        lambda p: torch.optim.SGD(p, lr=0.05),
        lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=lr_decay),
    ):
        for net in nets:
            optimizer = WRAPPERS[wrapper](build(net.parameters()), net.shared())
            for step in range(8):
                train(net, optimizer, [step], absent=(0,) if step == 5 else ())
            assert net.table.weight.grad.is_sparse == net.table.sparse
        torch.testing.assert_close(values(nets[0]), values(nets[1]), rtol=1e-4, atol=1e-6)


def test_a_sparse_gradient_that_the_optimizer_cannot_take_is_named():
    net = Net(2, sparse=True)
    optimizer = pub(net, form="matched")
    with pytest.raises(ValueError, match=r"shape \(20, 3\) has sparse gradients, which Adam cannot take"):
        train(net, optimizer, range(2))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_under_a_grad_scaler_steps_are_those_without_and_overflows_are_skipped(kind, wrapper):
    nets = [Net(2), Net(2)]
    a, b = (WRAPPERS[wrapper](OPTIMIZERS[kind](net.parameters()), net.shared()) for net in nets)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for step in range(8):
        train(nets[0], a, [step])
        b.zero_grad()
        b.backward([scaler.scale(loss) for loss in nets[1].losses(step)])
        scaler.step(b)
        scaler.update()
        if step == 3:
            before = values(nets[1])
            b.zero_grad()
            first, second = nets[1].losses(step)
            b.backward([scaler.scale(first), scaler.scale(second) * float("inf")])
            scaler.step(b)
            scale = scaler.get_scale()
            scaler.update()
            assert scaler.get_scale() == scale / 2
            assert torch.equal(values(nets[1]), before)
    torch.testing.assert_close(values(nets[0]), values(nets[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_grad_scalers_factor_is_taken_out_once_where_a_gradient_comes_from_one_task_alone(wrapper):
    nets = [Net(3), Net(3)]
    a, b = (WRAPPERS[wrapper](OPTIMIZERS["sgd"](net.parameters()), net.shared()) for net in nets)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(8):
        absent = (0, 2) if step in (1, 3, 4) else ()
        train(nets[0], a, [step], absent)
        b.zero_grad()
        b.backward([None if loss is None else scaler.scale(loss) for loss in nets[1].losses(step, absent)])
        scaler.step(b)
        scaler.update()
        torch.testing.assert_close(values(nets[0]), values(nets[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad brings it about
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_sparse_gradients_that_touch_no_row_move_nothing(wrapper):
    table = torch.nn.EmbeddingBag(5, 3, sparse=True, mode="sum")
    optimizer = WRAPPERS[wrapper](torch.optim.Adagrad(table.parameters(), lr=0.1), list(table.parameters()))
    before, heads = table.weight.detach().clone(), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for ids in ([1, 2], [], [], [3]):
        bags = table(torch.tensor(ids, dtype=torch.int64), torch.tensor([0]))
        optimizer.zero_grad()
        optimizer.backward([(bags * head).sum() + bags.square().sum() for head in heads])
        optimizer.step()
        assert torch.equal(table.weight, before) == (not ids)
        before = table.weight.detach().clone()


def test_half_precision_parameters_are_balanced_in_float32():
    net = Net(2).bfloat16()
    optimizer = PUB(torch.optim.AdamW(net.parameters(), lr=0.01), shared=net.shared(), update_every=2)
    for step in range(6):
        optimizer.zero_grad()
        z = torch.tanh(net.bottom(net.table(torch.tensor([[step, 3]])).flatten(1)))
        optimizer.backward([tower(z).float().square().mean() for tower in net.towers])
        optimizer.step()
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in net.parameters())
    assert optimizer.state[net.bottom.weight]["exp_avg"].dtype == torch.bfloat16
