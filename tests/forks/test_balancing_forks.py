"""Forks of ours that weigh by the Gram matrix: what all have in common, and where theory says that two differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from equipoise.forks import Bargaining, EqualProjections, Fork, GradCraft, MetaBalanceFork, MinNorm

NAMES = ["a", "b", "c", "d"]
FORKS = {
    "nash": Bargaining,
    "fairgrad": lambda tasks, **more: Bargaining(tasks, exponent=2.0, **more),
    "mgda": MinNorm,
    "mgda-equal": lambda tasks, **more: MinNorm(tasks, lengths="equal", **more),
    "imtl-g": EqualProjections,
    "config": lambda tasks, **more: EqualProjections(tasks, length="projections", **more),
    "gradcraft": lambda tasks, **more: GradCraft(tasks, tau=0.5, **more),
    "metabalance": lambda tasks, **more: MetaBalanceFork(tasks, target="b", **more),
}
SCALE_FREE = ["nash", "mgda-equal", "imtl-g", "config"]
each_fork = pytest.mark.parametrize("name", FORKS)
preferred = pytest.mark.parametrize("task_weights", [None, [9.0, 1.0, 2.0, 0.5]], ids=["equal", "preferences"])


def rows(seed: int, tasks: int = 4, dimension: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(tasks, dimension, generator=generator, dtype=torch.float64)
    return found * torch.logspace(-2, 1, tasks, dtype=torch.float64).unsqueeze(1)


def weigh(fork: Fork, gradients: Tensor, present: list[bool] | None = None) -> Tensor:
    fork.double()
    here = torch.tensor([True] * len(gradients) if present is None else present)
    gram = gradients @ gradients.T
    return fork.weigh(torch.where(here & here.unsqueeze(1), gram, 0.0), here)


@each_fork
@preferred
def test_the_order_of_the_tasks_does_not_matter(name: str, task_weights: list[float] | None) -> None:
    order = [2, 0, 3, 1]
    turned = None if task_weights is None else [task_weights[place] for place in order]
    one = FORKS[name](NAMES, task_weights=task_weights)
    other = FORKS[name]([NAMES[place] for place in order], task_weights=turned)
    for seed in range(3):
        found = weigh(one, rows(seed))
        torch.testing.assert_close(weigh(other, rows(seed)[order]), found[order], rtol=1e-7, atol=1e-12)


@each_fork
@preferred
def test_absent_tasks_take_no_part(name: str, task_weights: list[float] | None) -> None:
    """The others weigh as if it did not exist, up to one factor for their preferences' mean."""
    keep = [0, 1, 3]
    some = None if task_weights is None else [task_weights[place] for place in keep]
    whole, small = FORKS[name](NAMES, task_weights=task_weights), FORKS[name](list("abd"), task_weights=some)
    for seed in range(3):
        found = weigh(whole, rows(seed), [True, True, False, True])[keep]
        expected = weigh(small, rows(seed)[keep])
        if task_weights is not None:
            found, expected = found / found.abs().sum(), expected / expected.abs().sum()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    assert weigh(whole, rows(9), [False] * 4).isfinite().all()


@each_fork
def test_twice_the_losses_are_twice_the_gradient_upstream(name: str) -> None:
    gradients = rows(0)
    expected = weigh(FORKS[name](NAMES), gradients)
    torch.testing.assert_close(weigh(FORKS[name](NAMES), 1e-7 * gradients), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_scales_of_the_losses_do_not_change_the_direction(name: str) -> None:
    gradients, scales = rows(1), torch.tensor([1.0, 100.0, 0.1, 7.0], dtype=torch.float64)
    plain = weigh(FORKS[name](NAMES), gradients) @ gradients
    scaled = gradients * scales.unsqueeze(1)
    found = weigh(FORKS[name](NAMES), scaled) @ scaled
    torch.testing.assert_close(found / found.norm(), plain / plain.norm(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["mgda", "gradcraft"])
def test_elsewhere_they_do(name: str) -> None:
    """GradCraft with τ < 1, and MGDA, which prefers the short gradient."""
    gradients = rows(1)
    gradients /= gradients.norm(dim=1, keepdim=True)
    equal = weigh(FORKS[name](NAMES), gradients)
    gradients[0] *= 0.1
    shares = weigh(FORKS[name](NAMES), gradients) * gradients.norm(dim=1)
    assert not torch.allclose(shares / shares.sum(), equal / equal.sum(), rtol=0.1)


def test_of_two_orthogonal_gradients_each_method_has_its_own_view() -> None:
    """MGDA inverts squared lengths; IMTL-G, Nash-MTL and equal lengths invert lengths; GradCraft raises the short."""
    gradients = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    found = {name: weigh(fork(2), gradients) for name, fork in FORKS.items() if name != "metabalance"}
    ratios = {name: float(weights[0] / weights[1]) for name, weights in found.items()}
    expected = {
        "nash": 3, "fairgrad": 3 ** (4 / 3), "mgda": 9, "mgda-equal": 3, "imtl-g": 3, "config": 3, "gradcraft": 2
    }  # fmt: skip
    assert ratios == pytest.approx(expected, rel=1e-5)


@each_fork
def test_one_task_keeps_its_gradients_direction(name: str) -> None:
    fork = FORKS[name](["b"])
    assert weigh(fork, rows(0, 1)).item() == pytest.approx(1, rel=1e-5)


@each_fork
def test_what_is_printed_builds_the_same_fork(name: str) -> None:
    fork = FORKS[name](NAMES, task_weights=[9.0, 1.0, 2.0, 0.5])
    assert repr(eval(repr(fork))) == repr(fork)
    assert "task_weights=[9.0, 1.0, 2.0, 0.5]" in repr(fork)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Bargaining(2, exponent=0.0), "exponent must be positive and finite, found 0.0"),
        (lambda: MinNorm(2, lengths="none"), "lengths must be one of .* found 'none'"),
        (lambda: EqualProjections(2, length="none"), "length must be one of .* found 'none'"),
        (lambda: GradCraft(2, tau=1.5), "tau must lie in .* found tau=1.5"),
        (lambda: GradCraft(2, epsilon=1.0), "epsilon in .* epsilon=1.0"),
        (lambda: MetaBalanceFork(2, relax=-1.0), "relax must lie in .* found relax=-1.0"),
        (lambda: MetaBalanceFork(["a"], target="b"), "target must be one of the tasks a, found 'b'"),
        (lambda: Bargaining(2, task_weights=[1.0]), "task_weights must be a list of 2 positive finite numbers"),
    ],
)
def test_options_out_of_range_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
