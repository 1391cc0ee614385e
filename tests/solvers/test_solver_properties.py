"""Properties of both solvers for all absent tasks, orders and scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.solvers import bargaining_weights, min_norm_weights
from tests.solvers.matrix_samples import KINDS, vectors

SOLVERS = {"bargaining": bargaining_weights, "min-norm": min_norm_weights}
thorough = settings(max_examples=150, deadline=None, derandomize=True, database=None)
seeds, counts, dimensions = st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 8)
solvers, kinds = st.sampled_from(list(SOLVERS)), st.sampled_from((*KINDS, "zero"))


def gram(seed: int, tasks: int, dimension: int, kind: str, decades: float = 0.0) -> torch.Tensor:
    V = vectors(seed, tasks, dimension, decades=decades, kind=kind if tasks > 1 else "random")
    return torch.tensor(V @ V.T)


def assert_as_good(name: str, G: torch.Tensor, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare bargaining weights, which are unique, and the norms of min-norm points, which may not be."""
    if name == "bargaining":
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        return
    margin = 1e-5 * G.diagonal().min().item() + 1e-20 * G.diagonal().max().item()
    assert (found @ G @ found).item() == pytest.approx((expected @ G @ expected).item(), rel=1e-5, abs=margin)


@thorough
@given(seeds, counts, dimensions, kinds, solvers, st.data())
def test_the_order_of_the_tasks_does_not_matter(seed, tasks, dimension, kind, name, data):
    order = list(data.draw(st.permutations(range(tasks))))
    G = gram(seed, tasks, dimension, kind)
    H = G[order][:, order]
    assert_as_good(name, H, SOLVERS[name](H), SOLVERS[name](G)[order])


@thorough
@given(seeds, counts, dimensions, st.sampled_from(KINDS), solvers, st.data())
def test_absent_tasks_get_nothing_and_the_others_what_they_would_get_alone(seed, tasks, dimension, kind, name, data):
    here = torch.tensor(data.draw(st.lists(st.booleans(), min_size=tasks, max_size=tasks)))
    G = gram(seed, tasks, dimension, kind)
    weights = SOLVERS[name](G, here)
    assert (weights[~here] == 0).all()
    if here.any():
        H = G[here][:, here]
        assert_as_good(name, H, weights[here], SOLVERS[name](H))


@thorough
@given(seeds, counts, dimensions, kinds, st.floats(-8, 8))
def test_a_common_scale_changes_no_share(seed, tasks, dimension, kind, decades):
    G = gram(seed, tasks, dimension, kind)
    scale = 10.0**decades
    assert_as_good("min-norm", G, min_norm_weights(G * scale**2), min_norm_weights(G))
    assert_as_good("bargaining", G, bargaining_weights(G * scale**2) * scale, bargaining_weights(G))


@thorough
@given(seeds, counts, dimensions, kinds, solvers, st.sampled_from([torch.float32, torch.float64]), st.floats(0, 12))
def test_weights_are_finite_never_negative_and_of_the_matrix_dtype(seed, tasks, dimension, kind, name, dtype, decades):
    G = gram(seed, tasks, dimension, kind, decades).to(dtype)
    weights = SOLVERS[name](G)
    assert weights.dtype == dtype
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    if name == "min-norm":
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    else:
        assert torch.equal(weights > 0, G.diagonal() > 0)
