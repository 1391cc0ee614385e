"""Properties of MultiBalance for any gradients: shapes, dtypes, absent tasks, degenerate Gram matrices."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equipoise.forks.fork import Fork
from equipoise.forks.multibalance import MultiBalance
from tests.forks.fork_gradients import feed

KINDS = ("random", "identical", "opposed", "collinear", "zero")
MODES = [
    (magnitude, direction)
    for magnitude in ("equal", "averaged", "own", "none")
    for direction in ("cosine", "gram", "none")
]
thorough = settings(max_examples=150, deadline=None, derandomize=True, database=None)
seeds, counts, kinds, modes = st.integers(0, 10**6), st.integers(1, 12), st.sampled_from(KINDS), st.sampled_from(MODES)
shapes = st.lists(st.integers(1, 7), min_size=2, max_size=3)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def gradients(seed: int, tasks: int, shape: list[int], kind: str, decades: float = 0.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(tasks, *shape, generator=generator, dtype=torch.float64)
    if tasks > 1 and kind in ("identical", "opposed", "zero"):
        found[1] = found[0] * {"identical": 1.0, "opposed": -1.0, "zero": 0.0}[kind]
    if kind == "collinear":
        found = found[:1] * torch.arange(1, tasks + 1, dtype=torch.float64).view(-1, *[1] * len(shape))
    scales = 10 ** ((torch.rand(tasks, generator=generator, dtype=torch.float64) - 0.5) * decades)
    return list(found * scales.view(-1, *[1] * len(shape)))


def build(tasks: int, mode: tuple[str, str], **options: float) -> MultiBalance:
    return MultiBalance(tasks, magnitude=mode[0], direction=mode[1], **options)


def fed(fork: Fork, of_tasks: list[Tensor], absent: set[int], dtype: torch.dtype = torch.float64) -> Tensor:
    return feed(
        fork,
        [None if task in absent else gradient.to(dtype) for task, gradient in enumerate(of_tasks)],
        torch.zeros(of_tasks[0].shape, dtype=dtype, requires_grad=True),
    )


@thorough
@given(seeds, counts, shapes, kinds, modes, dtypes, st.data())
def test_what_flows_on_is_the_sum_weighted_as_the_fork_says(seed, tasks, shape, kind, mode, dtype, data):
    absent = data.draw(st.sets(st.integers(0, tasks - 1), max_size=tasks - 1))
    fork = build(tasks, mode, beta=data.draw(st.sampled_from([0.0, 0.1, 10.0])), gamma=0.5)
    for step in range(3):
        of_tasks = [g.to(dtype).double() for g in gradients(seed + step, tasks, shape, kind)]
        found = fed(fork, of_tasks, absent, dtype)
        assert found.dtype == dtype
        weights = fork.last_weights.double()
        assert weights.isfinite().all()
        here = [task for task in range(tasks) if task not in absent]
        expected = sum(weights[task] * of_tasks[task] for task in here)
        size = sum(weights[task].abs() * of_tasks[task].abs().max() for task in here)
        assert (found.double() - expected).abs().max() <= 4 * len(here) * max(torch.finfo(dtype).eps, 1e-6) * size


@thorough
@given(seeds, counts, shapes, kinds, modes, st.data())
def test_the_order_of_the_tasks_does_not_matter(seed, tasks, shape, kind, mode, data):
    order = data.draw(st.permutations(range(tasks)))
    absent = data.draw(st.sets(st.integers(0, tasks - 1), max_size=tasks - 1))
    forks = build(tasks, mode, gamma=0.5), build(tasks, mode, gamma=0.5)
    for step in range(3):
        of_tasks = gradients(seed + step, tasks, shape, kind)
        expected = fed(forks[0], of_tasks, absent)
        moved = {place for place, task in enumerate(order) if task in absent}
        found = fed(forks[1], [of_tasks[task] for task in order], moved)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(forks[1].last_weights, forks[0].last_weights[list(order)], rtol=1e-4, atol=1e-5)


@thorough
@given(seeds, counts, shapes, modes, st.data())
def test_an_absent_task_leaves_its_average_and_the_others_as_if_it_were_not_there(seed, tasks, shape, mode, data):
    place = data.draw(st.integers(0, tasks))
    with_it, without = build(tasks + 1, (mode[0], "none"), gamma=0.5), build(tasks, (mode[0], "none"), gamma=0.5)
    rest = [task for task in range(tasks + 1) if task != place]
    for step in range(3):
        of_tasks = gradients(seed + step, tasks + 1, shape, "random")
        found = fed(with_it, of_tasks, {place})
        fed(without, [of_tasks[task] for task in rest], set())
        assert found.isfinite().all()
    assert (with_it.averages[:, place] == 0).all()
    torch.testing.assert_close(with_it.averages[:, rest], without.averages, rtol=1e-6, atol=0)
    assert with_it.last_present.tolist() == [task != place for task in range(tasks + 1)]


@thorough
@given(seeds, counts, shapes, st.floats(-4, 4), st.sampled_from(["cosine", "none"]))
def test_equal_magnitudes_do_not_see_the_scale_of_a_loss(seed, tasks, shape, decades, direction):
    plain, scaled = (build(tasks, ("equal", direction), gamma=0.5) for _ in range(2))
    for step in range(3):
        of_tasks = gradients(seed + step, tasks, shape, "random")
        fed(plain, of_tasks, set())
        fed(scaled, [of_tasks[0] * 10**decades, *of_tasks[1:]], set())
    shares, others = (fork.last_weights * fork.last_gram.diagonal().sqrt() for fork in (plain, scaled))
    torch.testing.assert_close(others / others.sum(), shares / shares.sum(), rtol=1e-3, atol=1e-4)


@thorough
@given(seeds, counts, shapes, kinds, modes, st.floats(0, 24))
def test_scales_over_many_decades_leave_everything_finite(seed, tasks, shape, kind, mode, decades):
    fork = build(tasks, mode, gamma=0.5, beta=1.0)
    for step in range(4):
        assert fed(fork, gradients(seed + step, tasks, shape, kind, decades), set()).isfinite().all()
        assert fork.balance.isfinite().all()
        assert fork.averages.isfinite().all()
        assert fork.balance.sum().item() == pytest.approx(1.0, abs=1e-5)


@thorough
@given(seeds, counts, shapes, kinds, modes, st.booleans())
def test_a_fork_goes_on_from_its_state_to_the_last_bit(seed, tasks, shape, kind, mode, overlap):
    whole = build(tasks, mode, overlap=overlap)
    fed(whole, gradients(seed, tasks, shape, kind), set())
    resumed = build(tasks, mode, overlap=overlap)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    of_tasks = gradients(seed + 1, tasks, shape, kind)
    assert torch.equal(fed(resumed, of_tasks, set()), fed(whole, of_tasks, set()))
    assert torch.equal(resumed.last_weights, whole.last_weights)


@thorough
@given(seeds, counts, shapes, modes)
def test_without_gradients_a_fork_is_the_identity(seed, tasks, shape, mode):
    fork = build(tasks, mode)
    (shared,) = gradients(seed, 1, shape, "random")
    with torch.no_grad():
        assert all(torch.equal(branch, shared) for branch in fork(shared))
    assert all(torch.equal(branch, shared) for branch in fork.eval()(shared.requires_grad_()))
