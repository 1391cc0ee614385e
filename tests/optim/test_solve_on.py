"""PUB(solve_on=...): α from the last shared layer, solved before the step's one pass through what is shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from equipoise import Monitor
from equipoise.optim import PUB, AdaTask, MetaBalance
from equipoise.ranking.models import build_model
from equipoise.schema import Categorical, Numeric, Schema, Task
from tests.optim.pub_reference import solve
from tests.optim.task_nets import OPTIMIZERS, Net, take_step, train, values

SCHEMA = Schema([Categorical("user", 9), Categorical("item", 7)], [Numeric("age")], [Task("click"), Task("buy")])


def of_last(net: Net, kind: str = "adam", **options) -> PUB:
    options = {"update_every": 2, "solve_on": "last"} | options
    return PUB(OPTIMIZERS[kind](net.parameters()), shared=net.shared(), **options)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_where_the_last_layer_is_all_that_is_shared_it_is_the_same(kind):
    found = []
    for solve_on in ("last", "all"):
        net = Net(3)
        net.table.requires_grad_(False)
        optimizer = PUB(
            OPTIMIZERS[kind](net.parameters()), shared=net.bottom.parameters(), update_every=2, solve_on=solve_on
        )
        weights = []
        for step in range(12):
            train(net, optimizer, [step], absent=(1,) if step in (3, 4) else ())
            weights.append(optimizer.last_weights.clone())
        found.append((values(net), torch.stack(weights), optimizer.last_gram, optimizer.last_present))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6)
    assert (found[0][1] != 1).any()


STEPS, TASKS, ROWS, K = 25, 3, 6, 4
B1, B2, EPS, LR = 0.9, 0.999, 1e-8, 0.02


def data(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.normal(size=(ROWS, 4)), rng.normal(size=(TASKS, ROWS)) * np.array([[1.0], [5.0], [0.2]])


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(99)
    sizes = {"W1": (5, 4), "W2": (3, 5), "b2": (3,), "heads": (TASKS, 3)}
    return {name: rng.normal(size=size) for name, size in sizes.items()}


def by_hand(absent: dict[int, set[int]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Two shared layers and a head per task under Adam, in numpy; α from ``W2`` and ``b2``, kept by absent tasks."""
    p = start()
    m, v = ({name: np.zeros_like(value) for name, value in p.items()} for _ in range(2))
    alpha, alphas = np.ones(TASKS), []
    for step in range(STEPS):
        x, y = data(step)
        hidden = np.tanh(x @ p["W1"].T)
        z = hidden @ p["W2"].T + p["b2"]
        here = [task for task in range(TASKS) if task not in absent.get(step, set())]
        of_task = []
        for task in here:
            residual = z @ p["heads"][task] - y[task]
            dz = 2 / ROWS * np.outer(residual, p["heads"][task])
            head = np.zeros_like(p["heads"])
            head[task] = 2 / ROWS * residual @ z
            dW1 = ((dz @ p["W2"]) * (1 - hidden**2)).T @ x
            of_task.append({"W1": dW1, "W2": dz.T @ hidden, "b2": dz.sum(0), "heads": head})
        if step % K == 1:
            scaled = []
            for g in of_task:
                second = {n: B2 * v[n] + (1 - B2) * sum(other[n] ** 2 for other in of_task) for n in ("W2", "b2")}
                parts = [g[n] / (np.sqrt(second[n] / (1 - B2 ** (step + 1))) + EPS) for n in second]
                scaled.append(np.concatenate([part.reshape(-1) for part in parts]))
            found = solve(np.array([[one @ other for other in scaled] for one in scaled]))
            alpha[here] = found * len(here) / found.sum()
        for name in p:
            weights = np.ones(TASKS) if name == "heads" else alpha
            g = sum(weights[task] * own[name] for task, own in zip(here, of_task, strict=True))
            m[name] = B1 * m[name] + (1 - B1) * g
            v[name] = B2 * v[name] + (1 - B2) * g**2
            step_size = m[name] / (1 - B1 ** (step + 1)) / (np.sqrt(v[name] / (1 - B2 ** (step + 1))) + EPS)
            p[name] = p[name] - LR * step_size
        alphas.append(alpha.copy())
    return np.array(alphas), [p[name] for name in ("W1", "W2", "b2", "heads")]


@pytest.mark.parametrize("solve_on", ["last", "a list"])
@pytest.mark.parametrize("absent", [{}, {5: {1}, 6: {0, 2}, 9: {0}}], ids=["all present", "some absent"])
def test_it_follows_the_equations(absent, solve_on):
    p = {name: nn.Parameter(torch.from_numpy(value)) for name, value in start().items()}
    shared = [p["W1"], p["W2"], p["b2"]]
    optimizer = PUB(
        torch.optim.Adam(p.values(), lr=LR), shared=shared, update_every=K,
        solve_on="last" if solve_on == "last" else shared[1:],
    )  # fmt: skip
    alphas = []
    for step in range(STEPS):
        x, y = map(torch.from_numpy, data(step))
        z = torch.tanh(x @ p["W1"].T) @ p["W2"].T + p["b2"]
        losses = [(z @ p["heads"][task] - y[task]).square().mean() for task in range(TASKS)]
        take_step(optimizer, [None if task in absent.get(step, set()) else loss for task, loss in enumerate(losses)])
        alphas.append(optimizer.last_weights.numpy())
    expected, parameters = by_hand(absent)
    np.testing.assert_allclose(np.array(alphas), expected, rtol=1e-9)
    for name, value in zip(p, parameters, strict=True):
        np.testing.assert_allclose(p[name].detach().numpy(), value, rtol=1e-8, atol=1e-10)
    assert optimizer.solved_on == shared[1:]


def test_only_one_pass_goes_below_the_layer():
    net, passes = Net(3), []
    optimizer = of_last(net)
    for step in range(4):
        rows = net.table(torch.tensor([[step, 3]]))
        rows.register_hook(lambda _, step=step: passes.append(step))
        z = torch.tanh(net.bottom(rows.flatten(1)))
        take_step(optimizer, [tower(z).square().mean() for tower in net.towers])
    assert passes == [0, 1, 2, 3]
    assert (optimizer.last_weights != 1).any()


def weights_under(scaler: torch.amp.GradScaler, how: str) -> tuple[Tensor, Tensor]:
    net, found = Net(3), []
    optimizer = of_last(net)
    for step in range(8):
        losses = net.losses(step)
        optimizer.zero_grad()
        if how == "each loss":
            optimizer.backward([scaler.scale(loss) for loss in losses])
        elif how == "all at once":
            optimizer.backward(scaler.scale(losses))
        elif how == "and divided":
            optimizer.backward([scaler.scale(2 * loss) / 2 for loss in losses])
        else:
            scaler.scale(optimizer.total(losses)).backward()
        scaler.step(optimizer)
        scaler.update()
        found.append(optimizer.last_weights.clone())
    return torch.stack(found), values(net)


@pytest.mark.parametrize("how", ["each loss", "all at once", "and divided", "total"])
def test_a_grad_scaler_changes_no_weight(how):
    expected = weights_under(torch.amp.GradScaler("cpu", enabled=False), how)
    found = weights_under(torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3), how)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert (found[0] != 1).any()


def test_an_overflow_changes_no_weight():
    net = Net(2)
    optimizer = of_last(net, update_every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    train(net, optimizer, range(2))
    before, alpha = values(net), optimizer.last_weights
    first, second = net.losses(3)
    optimizer.zero_grad()
    optimizer.backward([scaler.scale(first), scaler.scale(second) * float("inf")])
    scaler.step(optimizer)
    assert torch.equal(values(net), before)
    assert torch.equal(optimizer.last_weights, alpha)
    assert optimizer.state_dict()["pub"]["steps"] == 2


def test_a_backward_without_a_step_changes_no_weight():
    nets = Net(2), Net(2)
    optimizers = [of_last(net, update_every=1) for net in nets]
    optimizers[1].backward(nets[1].losses(17))
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, range(3))
    assert torch.equal(values(nets[0]), values(nets[1]))


def test_a_factor_that_is_not_known_is_refused_before_anything_moves():
    net = Net(2)
    optimizer, scaler = of_last(net, update_every=1), torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))  # which sets its factor up
    before = values(net)
    optimizer.backward([2.0 * loss for loss in net.losses(0)])
    with pytest.raises(
        RuntimeError, match=r"last shared layer.* found losses whose factor is not known.* solve_on=.all."
    ):
        scaler.step(optimizer)
    assert torch.equal(values(net), before)
    assert (optimizer.last_weights == 1).all()


def test_of_several_micro_batches_the_first_decides_the_weights_of_all():
    found = []
    for micro_batches in ([0, 1, 2], [0]):
        net = Net(2)
        optimizer = of_last(net, "sgd", update_every=1)
        for step in micro_batches:
            optimizer.backward(net.losses(step))
        gradients = [p.grad.clone() for p in net.shared()]
        optimizer.step()
        found.append((optimizer.last_weights, gradients))
    (weights, gradients), (expected, _) = found
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert (weights != 1).any()
    net = Net(2)
    losses = [net.losses(step) for step in range(3)]
    torch.stack([weights[task] * of[task] for of in losses for task in range(2)]).sum().backward()
    for own, p in zip(gradients, net.shared(), strict=True):
        torch.testing.assert_close(own, p.grad)


def test_the_solve_is_no_less_exact_under_autocast():
    found = []
    for solve_on in ("last", "all"):
        net = Net(2)
        net.table.requires_grad_(False)
        optimizer = of_last(net, update_every=1, solve_on=solve_on)
        losses = net.losses(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.backward(losses)
        optimizer.step()
        found.append(optimizer.last_weights)
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


def test_the_last_layer_is_the_default_of_our_form():
    nets = Net(3), Net(3)
    ours = PUB(torch.optim.Adam(nets[0].parameters()), shared=nets[0].shared(), update_every=2)
    named = PUB(torch.optim.Adam(nets[1].parameters()), shared=nets[1].shared(), update_every=2, solve_on="last")
    for net, optimizer in zip(nets, (ours, named), strict=True):
        train(net, optimizer, range(6))
    assert torch.equal(values(nets[0]), values(nets[1]))
    assert ours.solved_on == list(nets[0].bottom.parameters())
    assert "solve_on='last'" in repr(ours)
    assert "solve_on='auto'" in repr(of_last(Net(3), solve_on="auto"))


@pytest.mark.parametrize("model", ["mmoe", "ple"])
def test_where_a_path_goes_past_the_last_layer_it_solves_from_all_by_default(model):
    found = []
    for solve_on in ("auto", "all"):
        torch.manual_seed(0)
        built = build_model(model, SCHEMA)
        shared = list(built.shared_parameters())
        optimizer = PUB(torch.optim.Adam(built.parameters()), shared=shared, update_every=2, solve_on=solve_on)
        for step in range(4):
            outputs = built(torch.tensor([[step, 1], [5, step]]), torch.ones(2, 1))
            take_step(optimizer, [(output - task).square().mean() for task, output in enumerate(outputs)])
        assert optimizer.solved_on == shared
        assert "solve_on='all'" in repr(optimizer)
        found.append((values(built), optimizer.last_weights))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert (found[0][1] != 1).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda net, o: PUB(o, shared=net.shared(), form="authors"),
        lambda net, o: PUB(AdaTask(o, shared=net.shared()), shared=net.shared()),
        lambda net, o: PUB(MetaBalance(o, shared=net.shared()), shared=net.shared()),
    ],
)
def test_what_needs_all_gradients_of_each_task_solves_from_all_by_default(make):
    net = Net(2)
    optimizer = make(net, torch.optim.Adam(net.parameters()))
    assert optimizer.solved_on == net.shared()
    assert "solve_on" not in repr(optimizer)  # there is no choice


def train_compiled(solve_on: str, update_every: int = 2) -> tuple[PUB, Tensor]:
    """Train a net whose graph from the table to the towers is compiled, which hides the last layer."""
    net = Net(2)
    trunk = torch.compile(nn.Sequential(net.table, nn.Flatten(), net.bottom, nn.Tanh()), backend="aot_eager")
    optimizer = of_last(net, update_every=update_every, solve_on=solve_on)
    for step in range(6):
        z = trunk(torch.tensor([[step, 3], [step, 7]]))
        take_step(optimizer, [(tower(z) - target).square().mean() for target, tower in enumerate(net.towers)])
    return optimizer, values(net)


@functorch_config.patch(donated_buffer=False)  # a pass per task keeps the graph
@pytest.mark.parametrize("update_every", [1, 2])
def test_where_the_last_layer_is_hidden_it_warns_once_and_solves_from_all(update_every):
    with pytest.warns(UserWarning, match=r"PUB solves from all 3 .* torch.compile hides.* pass solve_on=\[") as caught:
        found, reached = train_compiled("auto", update_every)
    assert len(caught) == 1
    assert Path(caught[0].filename).name == "task_nets.py"  # where `backward` is called
    expected, exact = train_compiled("all", update_every)
    assert torch.equal(reached, exact)
    assert torch.equal(found.last_weights, expected.last_weights)
    assert (found.last_weights != 1).any()
    assert "solve_on='all'" in repr(found)


def of_auto(net: Net, **options) -> PUB:
    return of_last(net, update_every=1, solve_on="auto", **options)


def weights_of(steps, solve_on: str = "auto") -> tuple[PUB, Tensor, Net]:
    """Train by ``steps``: called with a net and its optimizer in each of six steps, it returns a list of batches."""
    net = Net(3)
    optimizer = of_last(net, update_every=1, solve_on=solve_on)
    for step in range(6):
        optimizer.zero_grad()
        for losses in steps(net, step):
            optimizer.backward(losses)
        optimizer.step()
    return optimizer, optimizer.last_weights, net


@pytest.mark.parametrize(
    "batches",
    [
        lambda net, step: [net.losses(step), net.losses(step + 50)],
        lambda net, step: [
            [loss if task == batch else None for task, loss in enumerate(net.losses(step))] for batch in range(3)
        ],
    ],
    ids=["all tasks in each", "a task in each"],
)
def test_steps_of_several_batches_solve_from_all_by_default(batches):
    optimizer, _, net = weights_of(batches)
    expected, _, _ = weights_of(batches, "all")
    assert optimizer.solved_on == net.shared()
    assert optimizer.last_present.all()
    # The first step was solved before its second batch came, so that Adam's state differs a little.
    torch.testing.assert_close(optimizer.last_weights, expected.last_weights, rtol=0.15, atol=0)
    assert (optimizer.last_weights != 1).all()


def test_a_batch_without_a_loss_before_another_one_does_not_keep_it_from_solving():
    found, weights, net = weights_of(lambda net, step: [[None] * 3, net.losses(step)])
    _, expected, _ = weights_of(lambda net, step: [net.losses(step)])
    assert torch.equal(weights, expected)
    assert (weights != 1).any()
    assert found.solved_on == list(net.bottom.parameters())


def test_a_task_that_comes_later_and_goes_past_the_layer_lets_it_solve_from_all():
    net = Net(2)
    optimizer = of_auto(net)
    for step in range(4):
        first, second = net.losses(step)
        direct = net.table(torch.tensor([step, 3])).square().sum() if step > 1 else None
        take_step(optimizer, [first, second, direct])
        assert optimizer.solved_on == (list(net.bottom.parameters()) if step < 2 else net.shared())
    assert optimizer.last_weights[2] != 1


def test_a_task_that_comes_later_with_a_layer_of_its_own_adds_it():
    net, other = Net(2), nn.Linear(6, 5)
    shared = [*net.bottom.parameters(), *other.parameters()]
    optimizer = PUB(
        torch.optim.Adam([*net.parameters(), *other.parameters()]), shared=shared, update_every=1, solve_on="auto"
    )
    for step in range(4):
        losses = net.losses(step)
        if step % 2:
            z = torch.tanh(other(torch.ones(2, 6)))
            losses = [None, None, z.square().sum(), 5 * (z - 1).square().sum()]
        else:
            losses = [*losses, None, None]
        take_step(optimizer, losses)
        assert optimizer.solved_on == (shared[:2] if step == 0 else shared)
    assert (optimizer.last_weights != 1).all()


def test_a_table_that_is_trained_later_counts_again():
    net = Net(2)
    net.table.requires_grad_(False)
    optimizer = of_auto(net)
    for step in range(3):
        if step == 2:
            net.table.requires_grad_(True)
        losses = net.losses(step)
        take_step(optimizer, [losses[0] + net.table(torch.tensor([step])).sum(), losses[1]])
        assert optimizer.solved_on == (list(net.bottom.parameters()) if step < 2 else net.shared())


def test_the_choice_is_saved():
    net = Net(3)
    optimizer = of_auto(net)
    for step in range(2):
        optimizer.zero_grad()
        for batch in (0, 50):
            optimizer.backward(net.losses(step + batch))
        optimizer.step()
    resumed = of_auto(net, tasks=["0", "1", "2"])
    assert resumed.solved_on == []
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.solved_on == optimizer.solved_on == net.shared()
    named = of_last(net)
    named.load_state_dict(optimizer.state_dict())
    assert named.solved_on == []  # who asks for the last layer gets it


@functorch_config.patch(donated_buffer=False)
def test_who_asks_for_a_last_layer_that_is_hidden_is_told_what_to_pass():
    message = r"solve_on=\"last\"\) found that torch.compile hides .*: pass solve_on=\[parameters of the layer below"
    with pytest.raises(RuntimeError, match=message):
        train_compiled("last")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net, o: PUB(o, shared=net.shared(), solve_on="first"), 'must be "auto", "all", "last" or a list'),
        (lambda net, o: PUB(o, shared=net.shared(), solve_on=[]), "must hold at least one shared parameter"),
        (
            lambda net, o: PUB(o, shared=net.shared(), solve_on=net.towers.parameters()),
            r"must hold shared parameters, found a tensor of shape \(1, 5\) that is not one of `shared`",
        ),
        (
            lambda net, o: PUB(o, shared=net.shared(), solve_on="last", form="authors"),
            r"solve_on='last' saves .* found form 'authors', which needs them in any case. Set solve_on to",
        ),
        (
            lambda net, o: PUB(AdaTask(o, shared=net.shared()), shared=net.shared(), solve_on=[net.bottom.weight]),
            r"solve_on=\[1 parameters\] saves .* found form 'matched'",
        ),
        (
            lambda net, o: PUB(MetaBalance(o, shared=net.shared()), shared=net.shared(), solve_on="last"),
            "found MetaBalance inside",
        ),
    ],
)
def test_what_it_does_not_fit_is_refused(make, message):
    net = Net(2)
    with pytest.raises(ValueError, match=message):
        make(net, torch.optim.Adam(net.parameters()))


def test_a_list_is_checked_once_the_shared_parameters_are_known():
    net = Net(2)
    optimizer = PUB(torch.optim.Adam(net.parameters()), shared="auto", solve_on=net.towers.parameters(), update_every=1)
    with pytest.raises(ValueError, match="must hold shared parameters, found a tensor"):
        optimizer.backward(net.losses(0))


def test_a_frozen_layer_gives_way_to_the_one_below_and_a_frozen_list_is_refused():
    net = Net(2)
    optimizer, listed = of_last(net, update_every=1), of_last(net, update_every=1, solve_on=[net.bottom.weight])
    train(net, optimizer, [0])
    assert optimizer.solved_on == list(net.bottom.parameters())
    net.bottom.weight.requires_grad_(False)
    train(net, optimizer, [1])
    assert optimizer.solved_on == [net.table.weight, net.bottom.bias]
    listed.zero_grad()
    with pytest.raises(RuntimeError, match="solve_on holds 1 parameters, all of which are frozen"):
        listed.backward(net.losses(2))
    net.bottom.bias.requires_grad_(False)
    train(net, optimizer, [2])
    assert optimizer.solved_on == [net.table.weight]


def test_the_monitor_shows_the_updates_of_the_layer():
    net = Net(2)
    optimizer = of_last(net, tasks=["click", "buy"])
    assert "solve_on='last'" in repr(optimizer)
    train(net, optimizer, range(2))
    scalars = Monitor(net, optimizer).read().scalars()
    assert scalars["pub/weight/click"] == optimizer.last_weights[0].item()
    assert scalars["pub/norm/buy"] == pytest.approx(optimizer.last_gram[1, 1].sqrt().item())
