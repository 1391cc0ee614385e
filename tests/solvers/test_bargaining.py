"""The bargaining equation against a convex solver, its own residual, and the closed form for two tasks."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.solvers import bargaining_weights
from tests.solvers.matrix_samples import KINDS, SHAPES, vectors

RIDGE = 1e-6


def cosines(V: np.ndarray) -> np.ndarray:
    U = V / np.linalg.norm(V, axis=1, keepdims=True)
    return U @ U.T + RIDGE * np.eye(len(V))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tasks", "dimension"), SHAPES)
def test_it_agrees_with_a_convex_solver(tasks, dimension, kind):
    V = vectors(tasks * dimension, tasks, dimension, decades=12, kind=kind)
    C = cosines(V)
    a = cvxpy.Variable(tasks, pos=True)
    objective = 0.5 * cvxpy.quad_form(a, cvxpy.psd_wrap(C)) - cvxpy.sum(cvxpy.log(a))
    problem = cvxpy.Problem(cvxpy.Minimize(objective))
    problem.solve(cvxpy.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    ours = bargaining_weights(torch.tensor(V @ V.T)).numpy() * np.linalg.norm(V, axis=1)
    # The objective is strictly convex, so equal values mean equal points, as far as the solver can tell.
    found = 0.5 * ours @ C @ ours - np.log(ours).sum()
    assert found == pytest.approx(problem.value, abs=1e-6 * max(1, abs(problem.value)))
    np.testing.assert_allclose(ours, a.value, rtol=1e-3)


@given(st.integers(0, 10**6), st.integers(2, 64), st.integers(1, 100), st.floats(0, 12), st.sampled_from(KINDS))
@settings(deadline=None, max_examples=150)
def test_every_entry_of_the_equation_holds(seed, tasks, dimension, decades, kind):
    V = vectors(seed, tasks, dimension, decades=decades, kind=kind)
    a = bargaining_weights(torch.tensor(V @ V.T)).numpy() * np.linalg.norm(V, axis=1)
    assert (a > 0).all()
    np.testing.assert_allclose(a * (cosines(V) @ a), 1, atol=2e-6)


@given(st.integers(0, 10**6), st.floats(-6, 6))
@settings(deadline=None, max_examples=100)
def test_two_tasks_have_a_closed_form(seed, decades):
    u = vectors(seed, 2, 3)
    u[1] *= 10**decades
    norms = np.linalg.norm(u, axis=1)
    cosine = u[0] @ u[1] / norms.prod()
    ours = bargaining_weights(torch.tensor(u @ u.T)).numpy()
    np.testing.assert_allclose(ours, 1 / (norms * np.sqrt(1 + cosine + RIDGE)), rtol=1e-7)


def test_newton_finds_the_closed_form_of_two_pairs_that_do_not_meet():
    u = np.zeros((4, 6))
    u[:2, :3], u[2:, 3:] = vectors(1, 2, 3), vectors(2, 2, 3, decades=4)
    G = torch.tensor(u @ u.T)
    pairs = torch.cat((bargaining_weights(G[:2, :2]), bargaining_weights(G[2:, 2:])))
    torch.testing.assert_close(bargaining_weights(G), pairs, rtol=1e-9, atol=0)


def test_scaling_a_task_scales_its_weight_inversely():
    V = vectors(5, 6, 20)
    scales = np.array([1e-6, 1e-3, 1, 1, 1e3, 1e6])
    plain = bargaining_weights(torch.tensor(V @ V.T)).numpy()
    W = V * scales[:, None]
    np.testing.assert_allclose(bargaining_weights(torch.tensor(W @ W.T)).numpy() * scales, plain, rtol=1e-8)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_identical_tasks_share_one_bargain(tasks):
    ours = bargaining_weights(torch.full((tasks, tasks), 4.0, dtype=torch.float64))
    torch.testing.assert_close(ours, torch.full_like(ours, 0.5 / tasks**0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("tasks", [2, 4])
def test_opposed_tasks_get_what_the_ridge_allows(tasks):
    signs = torch.tensor([1.0, -1.0] * (tasks // 2), dtype=torch.float64)
    ours = bargaining_weights(torch.outer(signs, signs))
    torch.testing.assert_close(ours, torch.full_like(ours, RIDGE**-0.5), rtol=1e-5, atol=0)


@given(st.integers(0, 10**6), st.integers(3, 32), st.integers(1, 8))
@settings(deadline=None, max_examples=100)
def test_rounding_to_float32_does_no_harm(seed, tasks, dimension):
    V = vectors(seed, tasks, dimension).astype(np.float32)
    ours = bargaining_weights(torch.tensor(V @ V.T))
    assert ours.dtype == torch.float32
    assert ours.isfinite().all()
    assert (ours > 0).all()


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf, None])
@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_a_task_without_part_gets_zero_and_leaves_the_others_as_they_are(tasks, bad):
    V = vectors(6, tasks, 12)
    G = torch.tensor(V @ V.T)
    rest = torch.arange(tasks) != 1
    expected = bargaining_weights(G[rest][:, rest])
    present = rest if bad is None else None
    if bad is not None:
        G[1], G[:, 1] = bad, bad
    ours = bargaining_weights(G, present)
    assert ours[1] == 0
    torch.testing.assert_close(ours[rest], expected, rtol=1e-9, atol=0)


def test_without_any_task_all_weights_are_zero():
    for tasks in (2, 5):
        assert torch.equal(bargaining_weights(torch.zeros(tasks, tasks)), torch.zeros(tasks))
