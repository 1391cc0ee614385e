"""The projection onto the simplex, against its optimality conditions and a convex solver."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise.solvers import project_simplex

entries = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=64)


@given(entries, st.floats(0, 10), st.data())
@settings(deadline=None, max_examples=200)
def test_the_projection_fulfils_its_optimality_conditions(values, total, data):
    v = torch.tensor(values, dtype=torch.float64)
    present = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    w = project_simplex(v, present, total=total)
    assert (w >= 0).all()
    assert (w[~present] == 0).all()
    if not present.any():
        return
    assert float(w.sum()) == pytest.approx(total, abs=1e-9)
    # v − w is one number on the support and nowhere above it: the multiplier of the sum.
    slack = (v - w)[present]
    support = w[present] > 0
    if support.any():
        assert float(slack[support].max() - slack[support].min()) < 1e-9
        assert float(slack.max() - slack[support].max()) < 1e-9


@pytest.mark.parametrize("tasks", [2, 3, 8, 64])
def test_it_agrees_with_a_convex_solver(tasks):
    v = np.random.default_rng(tasks).normal(size=tasks)
    w = cvxpy.Variable(tasks, nonneg=True)
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(w - v)), [cvxpy.sum(w) == 1]).solve(cvxpy.CLARABEL)
    np.testing.assert_allclose(project_simplex(torch.tensor(v)).numpy(), w.value, atol=1e-6)


def test_all_tasks_present_is_the_same_as_no_mask():
    v = torch.tensor([0.3, -0.2, 0.5, 0.9])
    assert torch.equal(project_simplex(v), project_simplex(v, torch.ones(4, dtype=torch.bool)))


def test_points_of_the_simplex_stay_and_permutations_commute():
    v = torch.tensor([0.125, 0.5, 0.375], dtype=torch.float64)
    torch.testing.assert_close(project_simplex(v), v)
    u = torch.tensor([2.0, -1.0, 0.3], dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(project_simplex(u[order]), project_simplex(u)[order])


def test_the_total_may_be_a_tensor_a_whole_number_and_zero():
    v = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(project_simplex(v, total=2), project_simplex(v, total=2.0))
    torch.testing.assert_close(project_simplex(v, total=torch.tensor(0.5)), torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(project_simplex(v, total=0.0), torch.zeros(2))


@pytest.mark.parametrize("shift", [0.0, -1e6, 1e6])
def test_large_values_lose_no_precision(shift):
    v = torch.tensor([0.25, 0.5, -3.0]) + shift
    present = torch.tensor([True, True, True])
    for found in (project_simplex(v), project_simplex(v, present), project_simplex(v, total=torch.tensor(1.0))):
        assert float(found.sum()) == 1.0
        torch.testing.assert_close(found, torch.tensor([0.375, 0.625, 0.0]), atol=abs(shift) * 1e-7, rtol=1e-6)


def test_no_operation_is_refused_where_only_deterministic_ones_are_allowed():
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, operation, _, args=(), kwargs=None):
            names.add(operation.overloadpacket.__name__)
            return operation(*args, **kwargs or {})

    names: set[str] = set()
    with Names():
        project_simplex(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), total=torch.tensor(0.5))
    assert "amax" in names
    assert not names & {"cumsum", "cumsum_", "scatter_add_", "index_add_", "put_", "histc", "bincount", "median"}
