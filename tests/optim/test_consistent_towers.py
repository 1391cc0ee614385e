"""Consistent towers (ConsMTL): its formula, its limit, and the circumstances in which it must not change.

Several ranks are in ``test_data_parallel.py``.
"""

import pytest
import torch
from scipy.optimize import fsolve
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equipoise.forks import Bargaining, Fork, MultiBalance
from equipoise.methods import METHODS, parse_method
from equipoise.optim import ConsistentTowers
from equipoise.settings import TrainingSettings
from equipoise.training import Learner
from tests.methods.test_catalogue import SCHEMA, batch

TASKS, ROWS = 3, 12
pytestmark = pytest.mark.usefixtures("in_float64")
LIMITS = pytest.mark.parametrize("limit", [0.1, 1e6])


@pytest.fixture
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Net(nn.Module):
    """A bottom whose output and hidden layer cross the fork, and a tower per task that reads both."""

    def __init__(self, fork: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.bottom, self.top = nn.Linear(4, 6), nn.Linear(6, 5)
            self.towers = nn.ModuleList(
                nn.Sequential(nn.Linear(11, 7), nn.Tanh(), nn.Linear(7, 1)) for _ in range(TASKS)
            )
        self.fork = Bargaining(TASKS, exponent=2.0) if fork is None else fork

    def shared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.bottom(x))
        return self.top(hidden), hidden.view_as(hidden)

    def forward(self, x: Tensor) -> list[Tensor]:
        branches = self.fork(self.shared(x))
        return [tower(torch.cat(branch, 1)).squeeze(1) for tower, branch in zip(self.towers, branches, strict=True)]


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 4, generator=generator), torch.randn(TASKS, ROWS, generator=generator)


def losses_of(scores: list[Tensor], labels: Tensor) -> list[Tensor]:
    return [
        10.0**task * (score - label).square().mean()
        for task, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]


def losses(net: Net, step: int) -> list[Tensor]:
    x, labels = data(step)
    return losses_of(net(x), labels)


def built(fork: nn.Module | None = None, **options) -> tuple[Net, ConsistentTowers]:
    net = Net(fork)
    return net, ConsistentTowers(torch.optim.SGD(net.parameters(), lr=0.1), **options)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def after_backward(step: int = 0, fork: nn.Module | None = None, **options) -> dict[str, Tensor]:
    net, optimizer = built(fork, **options)
    optimizer.backward(losses(net, step))
    return gradients(net)


def fair_weights(gram: Tensor) -> Tensor:
    """Return the w of G w = w^(-1/2), by another solver."""
    matrix = (gram / torch.linalg.matrix_norm(gram)).numpy()
    found = fsolve(lambda w: (matrix @ w) * abs(w) ** 0.5 - 1, [2.0] * len(matrix), xtol=1e-12)
    return torch.from_numpy(found)


def set_gradients_by_the_formula(net: Net, step: int, weights: Tensor, pull: float, limit: float) -> None:
    """Check the weights, and set every ``grad`` with one pass per task."""
    x, labels = data(step)
    z = net.shared(x)
    own = losses_of([tower(torch.cat(z, 1)).squeeze(1) for tower in net.towers], labels)
    deltas = [torch.autograd.grad(loss, z, create_graph=True) for loss in own]
    rows = torch.stack([torch.cat([part.detach().flatten() for part in delta]) for delta in deltas])
    torch.testing.assert_close(weights, fair_weights(rows @ rows.T), rtol=1e-5, atol=0)  # the fork's has a ridge
    joint = [
        sum(w * part.detach() for w, part in zip(weights, parts, strict=True)) for parts in zip(*deltas, strict=True)
    ]
    for tower, loss, delta in zip(net.towers, own, deltas, strict=True):
        theta = list(tower.parameters())
        energy = -pull * sum((part * wanted).sum() for part, wanted in zip(delta, joint, strict=True))
        plain = torch.autograd.grad(loss, theta, retain_graph=True)
        extra = torch.autograd.grad(energy, theta, retain_graph=True, allow_unused=True, materialize_grads=True)
        lengths = [sum(g.square().sum() for g in found).sqrt() for found in (plain, extra)]
        share = min(1.0, float(limit * lengths[0] / lengths[1]))
        for p, g, more in zip(theta, plain, extra, strict=True):
            p.grad = g + share * more
    below = [*net.bottom.parameters(), *net.top.parameters()]
    for p, g in zip(below, torch.autograd.grad(z, below, joint), strict=True):
        p.grad = g


@LIMITS
def test_steps_are_those_of_the_formula_with_one_pass_per_task(limit: float) -> None:
    net, other = Net(), Net()
    optimizer = ConsistentTowers(torch.optim.Adam(net.parameters(), lr=0.01), pull=0.5, limit=limit)
    expected = torch.optim.Adam(other.parameters(), lr=0.01)
    for step in range(6):
        optimizer.zero_grad()
        optimizer.backward(losses(net, step))
        set_gradients_by_the_formula(other, step, net.fork.last_weights, 0.5, limit)
        for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(
                p.grad, q.grad, rtol=1e-8, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )
        optimizer.step()
        expected.step()


def test_the_extra_gradient_of_a_tower_is_no_longer_than_the_limit() -> None:
    plain = after_backward(pull=0.0)
    for pull, at_limit in ((1e-6, False), (1e9, True)):
        found = after_backward(pull=pull, limit=0.1)
        for task in range(TASKS):
            names = [name for name in plain if name.startswith(f"towers.{task}.")]
            own = torch.cat([plain[name].flatten() for name in names]).norm()
            extra = torch.cat([(found[name] - plain[name]).flatten() for name in names]).norm()
            assert 0 < extra / own < 0.1 * (1 + 1e-9)
            assert bool(extra / own > 0.0999) is at_limit


def test_without_a_pull_all_gradients_are_those_of_the_fork_alone() -> None:
    net = Net()
    sum(losses(net, 0)).backward()
    found = after_backward(pull=0.0)
    for name, g in gradients(net).items():
        torch.testing.assert_close(found[name], g, rtol=1e-14, atol=0)


def test_the_method_without_a_pull_is_fairgrad() -> None:
    torch.set_default_dtype(torch.float32)
    settings = TrainingSettings.of(lr=0.01, seed=2)
    one, other = (Learner(SCHEMA, parse_method(name), settings) for name in ("consmtl:pull=0.0", "fairgrad"))
    with_pull = Learner(SCHEMA, METHODS["consmtl"], settings)
    for step in range(5):
        found, expected, pulled = (learner.step(batch(step)) for learner in (one, other, with_pull))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert not torch.allclose(pulled, expected, rtol=1e-4)


def test_the_pull_turns_the_tasks_gradients_towards_the_joint_one() -> None:
    cosines = []
    for pull in (0.0, 1.0):
        net = Net()
        optimizer = ConsistentTowers(torch.optim.SGD(net.towers.parameters(), lr=0.1), pull=pull, limit=1.0)
        for _ in range(30):
            optimizer.zero_grad()
            optimizer.backward([loss / 10**task for task, loss in enumerate(losses(net, 0))])
            optimizer.step()
        gram, weights = net.fork.last_gram, net.fork.last_weights
        cosines.append((gram @ weights / (gram.diagonal() * (weights @ gram @ weights)).sqrt()).mean())
    assert cosines[1] > cosines[0] + 0.01


def test_a_task_without_a_loss_has_no_part_in_the_step() -> None:
    found = {}
    for kind in ("none", "zero", "two tasks"):
        net, optimizer = built()
        own = losses(net, 0)
        own[1] = None if kind != "zero" else 0 * own[1]
        if kind == "two tasks":
            net.fork = Bargaining(2, exponent=2.0)
            x, labels = data(0)
            branches = net.fork(net.shared(x))
            scores = [
                net.towers[task](torch.cat(branch, 1)).squeeze(1) for task, branch in zip((0, 2), branches, strict=True)
            ]
            own = [(scores[0] - labels[0]).square().mean(), 100.0 * (scores[1] - labels[2]).square().mean()]
        optimizer.backward(own)
        found[kind] = gradients(net)
    assert not any(name.startswith("towers.1") for name in found["none"])
    for name, g in found["two tasks"].items():
        torch.testing.assert_close(found["none"][name], g)
        torch.testing.assert_close(found["zero"][name], g)
    assert all(not g.any() for name, g in found["zero"].items() if name.startswith("towers.1"))


def test_a_step_without_any_loss_changes_nothing() -> None:
    net, optimizer = built()
    optimizer.backward([None, None, None])
    assert gradients(net) == {}


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_a_task_that_is_not_finite_spoils_no_other_tower(factor: float) -> None:
    net, optimizer = built()
    own = losses(net, 0)
    optimizer.backward([own[0], factor * own[1], own[2]])
    found = gradients(net)
    plain = after_backward(pull=0.0)
    for name, g in plain.items():
        if name.startswith(("towers.0", "towers.2")):
            assert (found[name] - g).norm() < 0.2 * g.norm()


def test_with_one_task_gradients_are_the_plain_ones() -> None:
    net, optimizer = built(tasks=["click"])
    net.fork = Fork(1)
    x, labels = data(0)

    def loss() -> Tensor:
        return (net.towers[0](torch.cat(net.fork(net.shared(x))[0], 1)).squeeze(1) - labels[0]).square().mean()

    optimizer.backward({"click": loss()})
    found = gradients(net)
    net.zero_grad()
    loss().backward()
    assert all(torch.equal(found[name], g) for name, g in gradients(net).items())


def test_several_calls_before_a_step_add_up() -> None:
    net, optimizer = built()
    for step in range(2):
        optimizer.backward(losses(net, step))
    found = gradients(net)
    parts = [after_backward(step) for step in range(2)]
    for name, g in found.items():
        torch.testing.assert_close(g, parts[0][name] + parts[1][name])


@LIMITS
@pytest.mark.parametrize("by_total", [False, True])
def test_a_grad_scaler_changes_neither_gradients_nor_averages_of_the_fork(limit: float, by_total: bool) -> None:
    plain = MultiBalance(TASKS)
    expected = after_backward(fork=plain, limit=limit)
    net, optimizer = built(MultiBalance(TASKS), limit=limit)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    if by_total:
        scaler.scale(optimizer.total(losses(net, 0))).backward()
    else:
        optimizer.backward(scaler.scale(torch.stack(losses(net, 0))))
    scaler.unscale_(optimizer)
    for name, g in gradients(net).items():
        torch.testing.assert_close(g, expected[name])
    torch.testing.assert_close(net.fork.averages, plain.averages)
    before = net.towers[0][0].weight.clone()
    scaler.step(optimizer)
    assert not torch.equal(net.towers[0][0].weight, before)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.bfloat16, 1.0), (torch.float16, 512.0)])
def test_towers_in_half_precision_give_nearly_the_same(dtype: torch.dtype, factor: float) -> None:
    expected = after_backward(limit=1.0)
    net, optimizer = built(limit=1.0)
    net.float()
    x, labels = data(0)
    with torch.autocast("cpu", dtype):
        scores = net(x.float())
    scaler = torch.amp.GradScaler("cpu", init_scale=factor)
    optimizer.backward([scaler.scale(loss) for loss in losses_of([s.float() for s in scores], labels.float())])
    for name, g in gradients(net).items():
        assert (g / factor - expected[name]).norm() < (0.01 if factor > 1 else 0.3) * expected[name].norm()


class Batched(nn.Module):
    """The towers of :class:`Net` in one product over the tasks, between one fork for each piece."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net, self.fork = net, Bargaining(TASKS, exponent=2.0)
        for name in ("weight", "bias"):
            for place in (0, 2):
                found = torch.stack([getattr(tower[place], name).detach() for tower in net.towers])
                setattr(self, f"{name}{place}", nn.Parameter(found))

    def forward(self, x: Tensor) -> list[Tensor]:
        branch = torch.cat(self.fork.stacked(self.net.shared(x)), 2)
        hidden = torch.tanh(torch.baddbmm(self.bias0.unsqueeze(1), branch, self.weight0.mT))
        return list(torch.baddbmm(self.bias2.unsqueeze(1), hidden, self.weight2.mT).squeeze(2))


def test_towers_in_one_batched_product_have_the_same_extra_gradients() -> None:
    expected = after_backward(limit=1e6)
    model = Batched(Net())
    optimizer = ConsistentTowers(torch.optim.SGD(model.parameters(), lr=0.1), limit=1e6)
    x, labels = data(0)
    optimizer.backward(losses_of(model(x), labels))
    for name in ("weight", "bias"):
        for place in (0, 2):
            found = getattr(model, f"{name}{place}").grad
            for task in range(TASKS):
                torch.testing.assert_close(found[task], expected[f"towers.{task}.{place}.{name}"])


def test_with_a_fork_per_piece_each_part_is_turned_towards_what_its_own_fork_sends_on() -> None:
    net, optimizer = built(Fork(TASKS), limit=1e6)  # equal weights, so that one fork does as two
    expected = after_backward(fork=Fork(TASKS), limit=1e6)
    x, labels = data(0)
    pieces = [Fork(TASKS)(piece) for piece in net.shared(x)]
    scores = [
        tower(torch.cat(branch, 1)).squeeze(1)
        for tower, branch in zip(net.towers, zip(*pieces, strict=True), strict=True)
    ]
    optimizer.backward(losses_of(scores, labels))
    for name, g in gradients(net).items():
        torch.testing.assert_close(g, expected[name])


def test_the_shared_layers_see_one_backward_pass_and_are_freed() -> None:
    net, optimizer = built()
    passes = []
    net.top.weight.register_hook(lambda _: passes.append(None))
    own = losses(net, 0)
    optimizer.backward(own)
    assert len(passes) == 1
    with pytest.raises(RuntimeError, match="second time"):
        sum(own).backward()


def test_an_input_and_a_parameter_of_another_optimizer_get_their_plain_gradients() -> None:
    net = Net()
    optimizer = ConsistentTowers(
        torch.optim.SGD([p for name, p in net.named_parameters() if "towers.1" not in name], lr=1)
    )
    x, labels = data(0)
    x.requires_grad_()
    optimizer.backward(losses_of(net(x), labels))
    found, at_input = gradients(net), x.grad
    net.zero_grad()
    x.grad = None
    sum(losses_of(net(x), labels)).backward()
    torch.testing.assert_close(at_input, x.grad)
    for name, g in gradients(net).items():
        if not name.startswith(("towers.0", "towers.2")):
            torch.testing.assert_close(found[name], g)


def test_its_state_is_that_of_the_wrapped_optimizer() -> None:
    optimizer = built()[1]
    assert optimizer.state_dict() == optimizer.optimizer.state_dict()
    assert repr(optimizer).endswith("pull=1.0, limit=0.1)")


def test_a_checkpoint_that_is_not_reentrant_may_stand_in_a_tower() -> None:
    expected = after_backward()
    net, optimizer = built()
    x, labels = data(0)
    branches = net.fork(net.shared(x))
    scores = [
        checkpoint(tower, torch.cat(branch, 1), use_reentrant=False).squeeze(1)
        for tower, branch in zip(net.towers, branches, strict=True)
    ]
    optimizer.backward(losses_of(scores, labels))
    for name, g in gradients(net).items():
        torch.testing.assert_close(g, expected[name])


def test_what_cannot_be_done_is_refused_with_a_remedy() -> None:
    for option in ("pull", "limit"):
        with pytest.raises(ValueError, match=rf"{option} must be at least 0 and finite, found -1"):
            built(**{option: -1.0})
    net, optimizer = built()
    with pytest.raises(ValueError, match="expected 3 losses, as from the start, found 2"):
        optimizer.backward(losses(net, 0)), optimizer.backward(losses(net, 0)[:2])
    net, optimizer = built()
    net.eval()
    with pytest.raises(RuntimeError, match=r"found none in the losses' graph. Put a fork between"):
        optimizer.backward(losses(net, 0))
    net, optimizer = built()
    own = losses(net, 0)
    with pytest.raises(RuntimeError, match=r"found 1 that losses reach both .*\(6, 4\).*Let every path"):
        optimizer.backward([own[0] + net.bottom.weight.square().sum(), *own[1:]])
    x, labels = data(0)
    branches = net.fork(net.shared(x))
    scores = [
        checkpoint(tower, torch.cat(branch, 1), use_reentrant=True).squeeze(1)
        for tower, branch in zip(net.towers, branches, strict=True)
    ]
    with pytest.raises(RuntimeError, match=r"reentrant kind above the forks.*use_reentrant=False"):
        optimizer.backward(losses_of(scores, labels))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own look
def test_a_compiled_tower_is_refused_and_compiled_shared_layers_are_not() -> None:
    expected = after_backward()
    net, optimizer = built()
    net.top = torch.compile(net.top, backend="aot_eager")
    optimizer.backward(losses(net, 0))
    for (name, g), wanted in zip(gradients(net).items(), expected.values(), strict=True):
        torch.testing.assert_close(g, wanted, msg=name)
    net.towers[1] = torch.compile(net.towers[1], backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"graph of torch.compile above the forks.*Compile the shared layers alone"):
        optimizer.backward(losses(net, 1))
