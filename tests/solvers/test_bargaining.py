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


@given(st.integers(0, 10**6), st.integers(2, 32), st.integers(1, 40), st.floats(0, 6), st.sampled_from(KINDS))
@settings(deadline=None, max_examples=150)
def test_utilities_are_proportional_to_the_preferences(seed, tasks, dimension, decades, kind):
    V = vectors(seed, tasks, dimension, decades=decades, kind=kind)
    p = 10 ** np.random.default_rng(seed).uniform(-1, 1, tasks)
    w = bargaining_weights(torch.tensor(V @ V.T), preferences=torch.tensor(p)).numpy()
    shares = w * np.linalg.norm(V, axis=1)
    assert (w > 0).all()
    np.testing.assert_allclose(shares * (cosines(V) @ shares), p, rtol=2e-6)


@given(st.integers(0, 10**6), st.floats(0.1, 9), st.floats(-3, 3))
@settings(deadline=None, max_examples=100)
def test_two_tasks_with_preferences_have_a_closed_form(seed, ratio, decades):
    u = vectors(seed, 2, 3)
    u[1] *= 10**decades
    norms = np.linalg.norm(u, axis=1)
    cosine = u[0] @ u[1] / norms.prod() / (1 + RIDGE)
    # s_0² + c s_0 s_1 = k, s_1² + c s_0 s_1 = 1 (over 1 + ridge): for x = s_0 / s_1 that is x² + c (1 − k) x = k
    half = cosine * (1 - ratio) / 2
    x = -half + np.sqrt(half**2 + ratio)
    second = 1 / np.sqrt((1 + cosine * x) * (1 + RIDGE))
    w = bargaining_weights(torch.tensor(u @ u.T), preferences=torch.tensor([ratio, 1.0])).numpy()
    np.testing.assert_allclose(w * norms, [x * second, second], rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0, 1.5, 2.0, 4.0])
def test_orthogonal_tasks_have_a_closed_form_for_every_exponent(exponent):
    norms = torch.tensor([0.1, 1.0, 3.0, 20.0], dtype=torch.float64)
    p = torch.tensor([2.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    w = bargaining_weights(torch.diag(norms.square()), preferences=p, exponent=exponent)
    expected = (p ** (1 / exponent) / norms.square()) ** (exponent / (1 + exponent))
    torch.testing.assert_close(w, expected, rtol=1e-5, atol=0)  # the ridge is part of it


@pytest.mark.parametrize("exponent", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("kind", ["random", "common"])
def test_any_exponent_agrees_with_a_convex_solver(exponent, kind):
    V = vectors(3, 4, 6, decades=1, kind=kind)
    norms, p = np.linalg.norm(V, axis=1), np.array([1.0, 3.0, 0.5, 2.0])
    G = cosines(V) * np.outer(norms, norms)  # with the ridge
    power = 1 - 1 / exponent
    w = cvxpy.Variable(4, pos=True)
    objective = 0.5 * cvxpy.quad_form(w, cvxpy.psd_wrap(G)) - cvxpy.sum(
        cvxpy.multiply(p ** (1 / exponent) / power, cvxpy.power(w, power))
    )
    cvxpy.Problem(cvxpy.Minimize(objective)).solve(cvxpy.CLARABEL, tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
    ours = bargaining_weights(torch.tensor(V @ V.T), preferences=torch.tensor(p), exponent=exponent)
    np.testing.assert_allclose(ours.numpy(), w.value, rtol=1e-3)


@given(
    st.integers(0, 10**6), st.integers(2, 24), st.integers(1, 40), st.floats(0, 2), st.sampled_from(KINDS),
    st.floats(0.5, 4),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_every_entry_of_the_equation_holds_for_every_exponent(seed, tasks, dimension, decades, kind, exponent):
    V = vectors(seed, tasks, dimension, decades=decades, kind=kind)
    p, norms = 10 ** np.random.default_rng(seed).uniform(-0.5, 0.5, tasks), np.linalg.norm(V, axis=1)
    w = bargaining_weights(torch.tensor(V @ V.T), preferences=torch.tensor(p), exponent=exponent).numpy()
    shares = w * norms
    found, wanted = cosines(V) @ shares, p ** (1 / exponent) * norms ** (1 / exponent - 1) * shares ** (-1 / exponent)
    assert (w > 0).all()
    # What C s can be computed to at all: where entries lie powers of ten apart, the small ones are differences.
    rounding = 1e-12 * np.abs(cosines(V)) @ shares
    assert (np.abs(found - wanted) <= 1e-5 * wanted + rounding).all()


def test_a_quarter_as_the_exponent_is_solved_where_preferences_are_moderate():
    for seed in range(20):
        V = vectors(seed, 6, 12)
        norms = np.linalg.norm(V, axis=1)
        w = bargaining_weights(torch.tensor(V @ V.T), exponent=0.25).numpy()
        np.testing.assert_allclose((cosines(V) * np.outer(norms, norms)) @ w * w**4, 1, rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_the_scale_of_a_problem_scales_its_solution(exponent):
    G = torch.tensor((V := vectors(9, 5, 7)) @ V.T)
    p = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    plain = bargaining_weights(G, preferences=p, exponent=exponent)
    scaled = bargaining_weights(G * 100, preferences=7 * p, exponent=exponent)
    torch.testing.assert_close(scaled, plain * (7 ** (1 / exponent) / 100) ** (exponent / (1 + exponent)))


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_an_absent_tasks_preference_has_no_influence(exponent):
    G = torch.tensor((V := vectors(6, 4, 12)) @ V.T)
    p, rest = torch.tensor([1.0, 9.0, 2.0, 3.0], dtype=torch.float64), torch.arange(4) != 1
    ours = bargaining_weights(G, rest, preferences=p, exponent=exponent)
    assert ours[1] == 0
    expected = bargaining_weights(G[rest][:, rest], preferences=p[rest], exponent=exponent)
    torch.testing.assert_close(ours[rest], expected, rtol=1e-9, atol=0)


def test_an_exponent_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="exponent must be positive, found 0"):
        bargaining_weights(torch.eye(2), exponent=0)
