"""Equal projections against the definition, on well and badly conditioned vectors."""

import numpy as np
import pytest
import torch

from equipoise.solvers import equal_projection_weights
from tests.solvers.matrix_samples import vectors


@pytest.mark.parametrize(("tasks", "decades"), [(2, 0), (3, 12), (8, 6), (32, 3)])
def test_the_combination_has_the_wanted_projections(tasks: int, decades: float) -> None:
    V = vectors(tasks, tasks, 200, decades=decades)
    wanted = np.linspace(0.1, 3, tasks)
    w = equal_projection_weights(torch.tensor(V @ V.T), preferences=torch.tensor(wanted)).numpy()
    projections = V @ (w @ V) / np.linalg.norm(V, axis=1)
    np.testing.assert_allclose(projections, wanted, rtol=1e-4)


def test_vectors_that_depend_on_each_other_share_a_weight_and_opposed_ones_give_nothing() -> None:
    twins = equal_projection_weights(torch.full((3, 3), 4.0, dtype=torch.float64))
    torch.testing.assert_close(twins, torch.full_like(twins, 1 / 6), rtol=1e-5, atol=0)
    opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    w = equal_projection_weights(opposed)
    assert w.isfinite().all()
    assert abs(float(w[0] - w[1])) < 1e-6 * float(w[0])


def test_what_is_absent_or_no_number_takes_no_part() -> None:
    V = vectors(5, 3, 20)
    G = torch.tensor(V @ V.T)
    whole = torch.full((5, 5), torch.nan, dtype=torch.float64)
    whole[:3, :3] = G
    whole[3, 3] = 0.0
    torch.testing.assert_close(equal_projection_weights(whole)[:3], equal_projection_weights(G))
    assert equal_projection_weights(whole)[3:].tolist() == [0.0, 0.0]
    present = torch.tensor([True, False, True])
    found = equal_projection_weights(G, present)
    torch.testing.assert_close(found[present], equal_projection_weights(G[[0, 2]][:, [0, 2]]))
