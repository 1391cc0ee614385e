"""One backward pass weighs the shared gradients alone where each task enters the shared part by edges of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equipoise.optim import PUB
from equipoise.optim.crossings import crossings_into
from equipoise.ranking.models import build_model
from equipoise.schema import Categorical, Numeric, Schema, Task
from tests.optim.task_nets import Net

WEIGHTS = [torch.tensor(weight, dtype=torch.float64) for weight in (0.25, 1.5, 3.0)]
SCHEMA = Schema([Categorical("user", 9), Categorical("item", 7)], [Numeric("age")], [Task("a"), Task("b"), Task("c")])
NESTED = Schema(
    [Categorical("user", 9), Categorical("item", 7)],
    [Numeric("age")],
    [Task("a"), Task("b", after="a", over="all"), Task("c")],
)
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Scaled(torch.autograd.Function):
    """Times a number, which is no input that a gradient flows to."""

    @staticmethod
    def forward(ctx, factor: float, one: Tensor, other: Tensor) -> Tensor:
        ctx.factor = factor
        return factor * (one + other)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, ctx.factor * gradient, ctx.factor * gradient


class Made(nn.Module):
    """A shared layer, a table beside it and three towers, put together by ``losses``."""

    def __init__(self, losses) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bottom, self.lower = nn.Linear(4, 3), nn.Linear(4, 4)
        self.towers = nn.ModuleList(nn.Linear(3, 1) for _ in range(3))
        self.stacked = nn.Parameter(torch.randn(3, 3, 1))
        self.own = nn.ParameterList(torch.randn(3) for _ in range(3))
        self._losses = losses
        self.double()

    def shared(self) -> list[nn.Parameter]:
        return [*self.bottom.parameters()]

    def losses(self) -> list[Tensor]:
        return self._losses(self)

    def z(self) -> Tensor:
        return torch.tanh(self.bottom(X))


def plain_towers(net: Made) -> list[Tensor]:
    z = net.z()
    return [tower(z).square().mean() for tower in net.towers]


def an_own_part_beside(net: Made) -> list[Tensor]:
    """Each task adds a vector of its own to the shared output and to its tower's, and one reads the shared weight."""
    z = net.z()
    found = [(tower(z + own) + own.sum()).square().mean() for tower, own in zip(net.towers, net.own, strict=True)]
    return [found[0] + (net.bottom.weight.sum(1) * net.own[0]).sum(), *found[1:]]


def a_task_without_a_tower(net: Made) -> list[Tensor]:
    return [net.z().square().mean(), *plain_towers(net)[1:]]


def a_task_without_a_shared_part(net: Made) -> list[Tensor]:
    return [*plain_towers(net)[:2], net.own[2].square().sum()]


def a_custom_function(net: Made) -> list[Tensor]:
    z = net.z()
    return [Scaled.apply(2.0, own, z).square().mean() for own in net.own]


def checkpointed(net: Made) -> list[Tensor]:
    z = checkpoint(net.z, use_reentrant=False)
    return [checkpoint(tower, z, use_reentrant=False).square().mean() for tower in net.towers]


def the_same_input_twice(net: Made) -> list[Tensor]:
    z = net.z()
    return [((z * own) * z).square().mean() for own in net.own]


def stacked_towers(net: Made) -> list[Tensor]:
    return list(torch.matmul(net.z(), net.stacked).square().mean((1, 2)).unbind())


def a_tower_of_two_tasks(net: Made) -> list[Tensor]:
    first, second, third = (tower(net.z()) for tower in net.towers)
    return [first.square().mean(), (first.sigmoid() * second).square().mean(), third.square().mean()]


def another_layer_below(net: Made) -> list[Tensor]:
    z = torch.tanh(net.bottom(net.lower(X)))
    return [tower(z).square().mean() for tower in net.towers]


APART = [
    plain_towers, an_own_part_beside, a_task_without_a_tower, a_task_without_a_shared_part, a_custom_function,
    checkpointed, the_same_input_twice,
]  # fmt: skip
TOGETHER = [stacked_towers, a_tower_of_two_tasks, another_layer_below]


def expected_gradients(net: nn.Module, shared: list[nn.Parameter], losses: list[Tensor]) -> list[Tensor | None]:
    """Return ``Σ α_m g_m`` of shared parameters and ``Σ g_m`` of others, from a pass per task."""
    known = {id(p) for p in shared}
    parameters = list(net.parameters())
    found: list[Tensor | None] = [None for _ in parameters]
    for loss, weight in zip(losses, WEIGHTS, strict=True):
        own = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for place, (p, gradient) in enumerate(zip(parameters, own, strict=True)):
            if gradient is not None:
                part = weight * gradient if id(p) in known else gradient
                before = found[place]
                found[place] = part if before is None else before + part
    return found


@pytest.mark.parametrize("made", APART, ids=lambda made: made.__name__)
def test_shared_gradients_are_weighed_and_all_others_are_those_of_the_plain_sum(made):
    net = Made(made)
    losses = net.losses()
    crossings = crossings_into(net.shared(), losses)
    assert crossings is not None
    expected = expected_gradients(net, net.shared(), losses)
    crossings.backward(losses, WEIGHTS)
    torch.testing.assert_close([p.grad for p in net.parameters()], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("made", TOGETHER, ids=lambda made: made.__name__)
def test_tasks_that_enter_together_have_no_crossings(made):
    net = Made(made)
    assert crossings_into(net.shared(), net.losses()) is None


@pytest.mark.parametrize("name", ["shared-bottom", "mmoe", "ple", "stem", "home", "esmm", "aitm"])
def test_ranking_models_are_weighed_in_one_pass(name):
    model = build_model(name, NESTED if name in ("esmm", "aitm") else SCHEMA).double().eval()
    outputs = model(torch.tensor([[3, 1], [5, 2]]), torch.ones(2, 1, dtype=torch.float64))
    losses = [output.square().sum() for output in outputs]
    shared = list(model.shared_parameters())
    crossings = crossings_into(shared, losses)
    assert crossings is not None
    expected = expected_gradients(model, shared, losses)
    crossings.backward(losses, WEIGHTS)
    torch.testing.assert_close([p.grad for p in model.parameters()], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.filterwarnings("ignore::equipoise.errors.MisplacedForkWarning")  # parameters left out on purpose
@pytest.mark.parametrize("made", APART + TOGETHER, ids=lambda made: made.__name__)
def test_a_step_of_pub_takes_one_pass_where_tasks_enter_apart_and_two_where_not(made, monkeypatch):
    net = Made(made)
    optimizer = PUB(torch.optim.SGD(net.parameters(), lr=0.1), shared=net.shared(), solve_on="all")
    calls: list[int] = []
    whole = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *args, **options: calls.append(1) or whole(*args, **options))
    for _ in range(3):  # the second one solves
        calls.clear()
        optimizer.zero_grad()
        losses = net.losses()
        weights = optimizer.last_weights if optimizer.last_weights.numel() else torch.ones(3, dtype=torch.float64)
        monkeypatch.setitem(globals(), "WEIGHTS", list(weights.clone()))
        expected = expected_gradients(net, net.shared(), losses)
        optimizer.backward(losses)
        found = [p.grad for p in net.parameters()]
        optimizer.step()
    assert len(calls) == (1 if made in APART else 2)
    assert len(set(weights.tolist())) > 1
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


class _DDPSink(torch.autograd.Function):
    """Hands all outputs of a model on, as DistributedDataParallel's function of this name does."""

    @staticmethod
    def forward(_ctx, _state: object, *outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.clone() for output in outputs)

    @staticmethod
    def backward(_ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradients


def test_a_wrapper_around_the_model_keeps_the_tasks_apart():
    net = Made(lambda net: [z.square().mean() for z in _DDPSink.apply(None, *(tower(net.z()) for tower in net.towers))])
    losses = net.losses()
    crossings = crossings_into(net.shared(), losses, alike=True)
    assert crossings is not None
    expected = expected_gradients(net, net.shared(), losses)
    crossings.backward(losses, WEIGHTS)
    torch.testing.assert_close([p.grad for p in net.parameters()], expected, rtol=1e-12, atol=1e-14)


def test_tasks_that_share_an_output_of_a_wrapper_enter_together():
    def losses(net: Made) -> list[Tensor]:
        z, own = _DDPSink.apply(None, net.z(), net.own[0])
        return [(tower(z) + own.sum()).square().mean() for tower in net.towers]

    net = Made(losses)
    assert crossings_into(net.shared(), net.losses()) is None


def test_ranks_make_two_passes_where_a_custom_function_may_exchange_something():
    """One of them may lack a task, so that the others alone see tasks enter together."""
    net = Made(a_custom_function)
    assert crossings_into(net.shared(), net.losses(), alike=True) is None
    below = Made(lambda net: [tower(Scaled.apply(2.0, net.z(), net.z())).square().mean() for tower in net.towers])
    assert crossings_into(below.shared(), below.losses(), alike=True) is not None


@pytest.mark.parametrize("hidden", ["tower", "bottom"])
def test_a_reentrant_checkpoint_that_comes_later_is_refused(hidden):
    net, late = Made(plain_towers), []
    optimizer = PUB(torch.optim.SGD(net.parameters(), lr=0.1), shared=net.shared(), solve_on="all")

    def losses(net: Made) -> list[Tensor]:
        if not late:
            return plain_towers(net)
        if hidden == "tower":
            z = net.z()
            found = [checkpoint(tower, z, use_reentrant=True) for tower in net.towers]
        else:
            z = checkpoint(lambda own: torch.tanh(net.bottom(X) + own), net.own[0], use_reentrant=True)
            found = [tower(z) for tower in net.towers]
        return [score.square().mean() for score in found]

    net._losses = losses
    for step in range(4):
        late[:] = [True] * (step == 3)
        optimizer.zero_grad()
        if late:
            with pytest.raises(RuntimeError, match="activation checkpointing of the reentrant kind"):
                optimizer.backward(net.losses())
            break
        optimizer.backward(net.losses())
        optimizer.step()
    assert late


@pytest.mark.filterwarnings("ignore::equipoise.errors.MisplacedForkWarning")  # each parameter has one task
def test_accumulated_gradients_do_not_reach_the_weights_through_shared_memory():
    """A loss that is a view of a parameter hands its weight on as that parameter's gradient."""
    one, three, own = (nn.Parameter(torch.ones(size, dtype=torch.float64)) for size in (1, 3, 1))
    optimizer = PUB(torch.optim.SGD([one, three, own], lr=0.01), shared=[one, three], solve_on="all")
    for _ in range(3):
        optimizer.zero_grad()
        before = optimizer.last_weights.clone()
        for _ in range(2):
            optimizer.backward([one.squeeze(), three.square().sum() * own.sum()])
        assert torch.equal(optimizer.last_weights, before) or not before.numel()
        optimizer.step()
    assert one.grad.item() == pytest.approx(2 * before[0].item())


def test_hooks_of_a_tower_see_its_own_gradient_once_a_step():
    net = Net(3)
    optimizer = PUB(torch.optim.SGD(net.parameters(), lr=0.1), shared=net.shared())
    seen: list[Tensor] = []
    net.towers[1].weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    for step in range(4):
        seen.clear()
        optimizer.zero_grad()
        optimizer.backward(net.losses(step))
        (found,) = seen
        seen.clear()
        (expected,) = torch.autograd.grad(net.losses(step)[1], net.towers[1].weight)
        assert torch.equal(found, expected)
        optimizer.step()


def test_a_pass_leaves_no_hooks_behind():
    net = Made(plain_towers)
    losses = net.losses()
    crossings = crossings_into(net.shared(), losses)
    again = torch.autograd.grad(sum(losses), net.shared(), retain_graph=True)
    kept = net.towers[0](net.z()).square().mean()
    crossings_into(net.shared(), [kept]).backward([kept], WEIGHTS[:1])
    crossings.backward(losses, WEIGHTS)
    fresh = torch.autograd.grad(sum(net.losses()), net.shared())
    torch.testing.assert_close(fresh, again)


def test_a_weight_is_not_rounded_to_half_precision():
    torch.manual_seed(0)
    shared, own = nn.Parameter(torch.randn(64)), nn.Parameter(torch.ones(64))
    weight = torch.tensor(1.003)  # bfloat16 knows 1 and 1.0078125
    loss = (own.bfloat16() * shared.bfloat16()).sum()
    crossings_into([shared], [loss]).backward([loss], [weight])
    gradient = torch.full((64,), 1.003).bfloat16().float()
    assert torch.equal(shared.grad, gradient)
    assert torch.equal(own.grad, shared.detach().bfloat16().float())


def test_a_frozen_shared_part_leaves_the_towers_their_gradients():
    net = Made(plain_towers)
    net.bottom.requires_grad_(False)
    losses = net.losses()
    expected = torch.autograd.grad(sum(losses), list(net.towers.parameters()), retain_graph=True)
    crossings_into([], losses).backward(losses, WEIGHTS)
    torch.testing.assert_close([p.grad for p in net.towers.parameters()], list(expected))
