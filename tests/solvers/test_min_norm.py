"""MGDA's min-norm point against a convex solver, its optimality conditions, and closed forms."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.solvers import min_norm_weights
from tests.solvers.matrix_samples import KINDS, SHAPES, vectors


def value(V: np.ndarray, w: np.ndarray) -> float:
    return float(np.sum((w @ V) ** 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tasks", "dimension"), SHAPES)
def test_it_agrees_with_a_convex_solver(tasks, dimension, kind):
    V = vectors(tasks + dimension, tasks, dimension, decades=2, kind=kind)
    V /= np.linalg.norm(V, axis=1).min()
    weights = cvxpy.Variable(tasks, nonneg=True)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(V.T @ weights)), [cvxpy.sum(weights) == 1])
    problem.solve(cvxpy.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    ours = min_norm_weights(torch.tensor(V @ V.T)).numpy()
    assert ours.min() >= 0
    assert ours.sum() == pytest.approx(1)
    # The shortest vector has length 1, so this is relative to a value that need not be 0.
    assert value(V, ours) == pytest.approx(problem.value, rel=1e-5, abs=1e-5)


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 30), st.floats(0, 6))
@settings(deadline=None, max_examples=100)
def test_no_vertex_is_a_direction_of_descent(seed, tasks, dimension, decades):
    V = vectors(seed, tasks, dimension, decades=decades)
    w = min_norm_weights(torch.tensor(V @ V.T)).numpy()
    slopes = V @ (w @ V)
    shortest = np.sum(V**2, axis=1).min()
    # Frank-Wolfe's gap along each vertex, in units of that vertex's own length.
    gaps = (w @ slopes - slopes) / np.sqrt(np.sum(V**2, axis=1) * shortest)
    assert gaps.max() < 1e-4


@given(st.integers(0, 10**6), st.floats(-6, 6))
@settings(deadline=None, max_examples=100)
def test_two_tasks_have_a_closed_form(seed, decades):
    a, b = vectors(seed, 2, 4)
    b = b * 10**decades
    share = np.clip((b @ b - a @ b) / ((a - b) @ (a - b)), 0, 1)
    ours = min_norm_weights(torch.tensor(np.array([[a @ a, a @ b], [a @ b, b @ b]])))
    assert float(ours[0]) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("tasks", [3, 8])
def test_orthogonal_tasks_get_weights_inverse_to_their_squares(tasks):
    squares = torch.logspace(-2, 2, tasks, dtype=torch.float64)
    expected = squares.reciprocal() / squares.reciprocal().sum()
    torch.testing.assert_close(min_norm_weights(squares.diag()), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_a_task_without_gradient_is_already_the_least_norm(tasks):
    V = vectors(3, tasks, 10, kind="zero")
    w = min_norm_weights(torch.tensor(V @ V.T))
    torch.testing.assert_close(w, torch.eye(tasks, dtype=torch.float64)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_absent_and_overflowing_tasks_leave_the_others_as_they_are(tasks):
    V = vectors(4, tasks, 10)
    G = torch.tensor(V @ V.T)
    present = torch.ones(tasks, dtype=torch.bool)
    present[1] = False
    rest = min_norm_weights(G[present][:, present]) if tasks > 2 else torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(min_norm_weights(G, present)[present], rest, atol=1e-6, rtol=0)
    assert min_norm_weights(G, present)[1] == 0
    for bad in (torch.nan, torch.inf):
        G[1], G[:, 1] = bad, bad
        torch.testing.assert_close(min_norm_weights(G)[present], rest, atol=1e-6, rtol=0)


def test_without_any_task_all_weights_are_zero():
    for tasks in (2, 4):
        assert torch.equal(min_norm_weights(torch.full((tasks, tasks), torch.nan)), torch.zeros(tasks))


def test_dtype_is_kept():
    assert min_norm_weights(torch.eye(3)).dtype == torch.float32
