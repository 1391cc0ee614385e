"""Preferences of every method that takes them: a say of 9 : 1 stays one of 9 : 1 for the whole training.

Each method is driven by a stream of made-up gradients or losses, without a model.
"""

from functools import cache

import pytest
import torch
from torch import Tensor

from equipoise.forks import Bargaining, EqualProjections, Fork, GradCraft, MinNorm
from equipoise.jacobian import from_gram
from equipoise.methods import CATALOGUE, METHODS, Method, MethodError, parse_method
from equipoise.methods.torchjd_at_fork import WeightedByPreferenceVector
from equipoise.settings import TrainingSettings
from equipoise.training import IncompatibleError, Learner, SettingError
from tests.methods.test_catalogue import SCHEMA, batch

TASKS = ("a", "b", "c")
WANTED = {"a": 9.0, "c": 2.0}
STEPS = 500
taking = [method for method in CATALOGUE if method.takes_task_weights and not method.adds_losses]


@cache
def vectors(step: int) -> Tensor:
    """Return gradients of lengths that differ and drift, with some conflict between the first two."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randn(3, 400, generator=generator)
    rows[0] -= 0.2 * rows[1]
    return rows * torch.tensor([[0.009], [0.011], [0.01]]) * (1 + step / STEPS)


def weights_of_fork(fork: Fork) -> Tensor:
    """Return the weights of the last step; a fork without state depends on that step alone."""
    for step in range(STEPS) if list(fork.buffers()) else [STEPS - 1]:
        rows = vectors(step)
        weights = fork.weigh(rows @ rows.T, torch.ones(3, dtype=torch.bool))
    return weights


def say_at_fork(method: Method) -> Tensor | None:
    """Return what a preference decides by the fork's documentation; None if it decides the weights."""
    fork = method.with_task_weights(WANTED).fork_factory(TASKS)()
    weights, rows = weights_of_fork(fork), vectors(STEPS - 1)
    along = rows @ (weights @ rows)
    if isinstance(fork, Bargaining):
        return weights * along**fork.exponent
    if isinstance(fork, MinNorm | EqualProjections):
        return along if getattr(fork, "lengths", "equal") == "own" else along / rows.norm(dim=1)
    if isinstance(
        fork, GradCraft | WeightedByPreferenceVector
    ):  # the shares of the changed gradients: the weights are linear in them
        one_hot = [dict.fromkeys(TASKS, 1e-9) | {task: 1.0} for task in TASKS]
        alone = [weights_of_fork(method.with_task_weights(one).fork_factory(TASKS)()) for one in one_hot]
        return torch.linalg.solve(torch.stack(alone).T, weights)
    return None


def weights_of_losses(method: Method) -> Tensor:
    weighting = method.build_loss_weighting(TASKS)
    torch.manual_seed(0)
    for step in range(STEPS):
        losses = torch.tensor([0.05, 0.7, 2.0]) * (2 - step / STEPS) + 0.01 * torch.rand(3)
        weights = weighting.weigh(losses, torch.ones(3, dtype=torch.bool))
        rows = weights.unsqueeze(1) * vectors(step)
        weighting.after_backward(rows @ rows.T)
        for parameter in weighting.learned_parameters():
            parameter.data -= 0.01 * parameter.grad
            parameter.grad = None
        weighting.after_step(losses, torch.ones(3, dtype=torch.bool))
        if step % 50 == 49:
            weighting.after_epoch()
    return weights


def weights_of_gradients(method: Method) -> Tensor:
    """Return what each gradient counts in the last step, after descent on orthogonal gradients; their sum is 1.

    Of the methods that solve ``w (G w)^a = p`` it is the left-hand side.
    """
    shared = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
    optimizer = method.build_optimizer(torch.optim.SGD([shared], lr=1.0), shared=[shared], tasks=TASKS)
    basis = torch.linalg.qr(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()).Q.T
    aggregator = getattr(optimizer, "aggregator", None)
    for step in range(STEPS - 1 if aggregator and not aggregator.kept else 0, STEPS):  # without a state the last is all
        rows = basis * vectors(step).norm(dim=1, keepdim=True)
        before = shared.detach().clone()
        optimizer.zero_grad()
        optimizer.backward(list(rows @ shared))
        optimizer.step()
    gains = rows @ (before - shared.detach())
    weights = gains / rows.square().sum(1)
    if isinstance(aggregator, from_gram.Bargaining):
        weights = weights * gains**aggregator.exponent
    return weights / weights.sum()


def shares_of_updates(method: Method) -> Tensor:
    """Return the utilities ``w_m ⟨u_m, Σ w_j u_j⟩`` of the last solve."""
    shared = torch.nn.Parameter(torch.zeros(400))
    sgd = torch.optim.SGD([shared], lr=1e-3)
    optimizer = method.build_optimizer(sgd, shared=[shared], tasks=TASKS)
    for step in range(STEPS + 2):  # the last step solves
        optimizer.zero_grad()
        optimizer.backward(list(vectors(step) @ shared))
        optimizer.step()
    return optimizer.last_weights * (optimizer.last_gram @ optimizer.last_weights)


def check_say(found: Tensor, equal: Tensor) -> None:
    """Check that what decides each task's say is that of equal preferences, times the preference."""
    wanted = torch.tensor([9.0, 1.0, 2.0], dtype=found.dtype) / 4
    torch.testing.assert_close(found, equal * wanted, rtol=1e-3, atol=0)
    assert equal.count_nonzero() >= 2


@pytest.mark.parametrize("method", taking, ids=lambda method: method.name)
def test_9_to_1_is_9_to_1_after_500_steps(method: Method) -> None:
    if method.name == "pub-shipped":
        pytest.skip("its weights are all 1")
    if method.name == "famo-next-batch":
        pytest.skip("it needs losses that follow the weights: see tests/loss_weighting/test_weighting.py")
    preferring = method.with_task_weights(WANTED)
    if method.jacobian is not None or method.name in {"adatask", "metabalance"}:
        found, equal = map(weights_of_gradients, (preferring, method))
        wanted = equal * torch.tensor([9.0, 1.0, 2.0], dtype=torch.float64)
        torch.testing.assert_close(found, wanted / wanted.sum(), rtol=1e-3, atol=0)
        assert equal.count_nonzero() >= 2
    elif method.loss_weighting is not None:
        check_say(*map(weights_of_losses, (preferring, method)))
    elif method.fork is not None:
        found = say_at_fork(method)
        if found is not None:
            check_say(found / found.mean(), torch.ones_like(found))
        else:
            check_say(*(weights_of_fork(row.fork_factory(TASKS)()) for row in (preferring, method)))
    else:
        utilities = shares_of_updates(preferring)
        check_say(utilities / utilities.mean(), torch.ones_like(utilities))


@pytest.mark.parametrize("method", CATALOGUE, ids=lambda method: method.name)
def test_every_method_trains_with_preferences_or_refuses_them_with_a_remedy(method: Method) -> None:
    settings = TrainingSettings.of(task_weights={"buy": 9.0})
    if not method.takes_task_weights or method.name == "pub-shipped":
        with pytest.raises(IncompatibleError, match=rf"'{method.name}'.*task_weights.*or use"):
            Learner(SCHEMA, method, settings)
        return
    preferring, equal = Learner(SCHEMA, method, settings, epoch_steps=2), Learner(SCHEMA, method, TrainingSettings.of())
    for step in range(3):
        found, plain = preferring.step(batch(step)), equal.step(batch(step))
    assert found.isfinite().all()
    assert torch.equal(found, plain) is (method.name == "single-task")


@pytest.mark.parametrize("name", ["equal", "clippy"])
def test_where_losses_are_added_up_preferences_weigh_their_sum(name: str) -> None:
    preferring = Learner(SCHEMA, METHODS[name], TrainingSettings.of(task_weights={"buy": 4.0}))
    scaled = Learner(SCHEMA, METHODS[name], TrainingSettings.of(loss_scale={"click": 0.5, "like": 0.5, "buy": 2.0}))
    for step in range(3):
        assert torch.equal(preferring.step(batch(step)), scaled.step(batch(step)))


def test_a_task_that_there_is_not_is_named() -> None:
    with pytest.raises(SettingError, match="Task weights: expected tasks out of click, like, buy; found share"):
        Learner(SCHEMA, METHODS["multibalance"], TrainingSettings.of(task_weights={"share": 2.0}))


@pytest.mark.parametrize(
    "name", ["metabalance:target", "metabalance-fork:target", "pcd:primary", "pcd-parameters:primary"]
)
def test_a_target_that_is_no_task_is_named_before_anything_is_built(name: str) -> None:
    with pytest.raises(
        SettingError, match=r"(target|primary) must be one of the tasks click, like, buy; found 'share'"
    ):
        Learner(SCHEMA, parse_method(f"{name}=share"), TrainingSettings.of())
    Learner(SCHEMA, parse_method(f"{name}=buy"), TrainingSettings.of())


def test_a_method_without_preferences_says_so() -> None:
    with pytest.raises(MethodError, match=r"'graddrop' has no preferences among tasks: leave task_weights out, or use"):
        METHODS["graddrop"].with_task_weights({"a": 2.0})
    with pytest.raises(MethodError, match=r"'pub-shipped': form 'shipped' keeps all weights at 1"):
        METHODS["pub-shipped"].with_task_weights({"a": 2.0})
