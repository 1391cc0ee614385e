"""The weights of each fork against its formula: a solver of others, torchjd, or a plain loop in float64."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor
from torchjd.aggregation import IMTLG, ConFIG

from equipoise.forks import Bargaining, EqualProjections, GradCraft, MetaBalanceFork, MinNorm
from tests.forks.test_balancing_forks import rows, weigh

seeds = pytest.mark.parametrize("seed", range(4))
PREFERENCES = [9.0, 1.0, 2.0, 0.5]
P = np.array(PREFERENCES) / np.mean(PREFERENCES)


def combined(weights: Tensor, gradients: Tensor) -> Tensor:
    return weights @ gradients


@seeds
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_bargaining_equation_agrees_with_scipy(seed: int, exponent: float) -> None:
    gradients = rows(seed)
    G = (gradients @ gradients.T).numpy()
    G /= np.linalg.norm(G)
    scale = 1 / np.sqrt(np.diag(G))  # solved for w · ‖g‖, as scipy wants numbers of one size

    def residual(s: np.ndarray) -> np.ndarray:
        w = s * scale
        return scale * (G @ w - (P / w) ** (1 / exponent)) / scale ** (1 - 1 / exponent)

    found = least_squares(residual, np.ones(4), bounds=(1e-9, np.inf), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert np.abs(found.fun).max() < 1e-6
    ours = weigh(Bargaining(4, exponent=exponent, task_weights=PREFERENCES), gradients)
    np.testing.assert_allclose(ours.numpy(), found.x * scale, rtol=1e-3)


@seeds
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 5.0])
def test_every_entry_of_the_bargaining_equation_holds(seed: int, exponent: float) -> None:
    gradients = rows(seed)
    G = gradients @ gradients.T
    w = weigh(Bargaining(4, exponent=exponent, task_weights=PREFERENCES), gradients)
    np.testing.assert_allclose(
        (G @ w / torch.linalg.matrix_norm(G)).numpy(), (P / w.numpy()) ** (1 / exponent), rtol=1e-3
    )


@seeds
def test_nash_is_where_utilities_are_equal_and_has_the_authors_length(seed: int) -> None:
    gradients = rows(seed)
    d = combined(weigh(Bargaining(4), gradients), gradients)
    utilities = weigh(Bargaining(4), gradients) * (gradients @ d)
    torch.testing.assert_close(utilities, utilities.mean().expand(4), rtol=1e-4, atol=0)
    norm = torch.linalg.matrix_norm(gradients @ gradients.T)
    torch.testing.assert_close(d.square().sum(), 4 * norm, rtol=1e-4, atol=0)


@seeds
@pytest.mark.parametrize("lengths", ["own", "equal"])
def test_mgda_agrees_with_a_convex_solver(seed: int, lengths: str) -> None:
    gradients = rows(seed)
    gradients[0] -= 0.5 * gradients[1] / gradients[1].norm() * gradients[0].norm()
    norms = gradients.norm(dim=1)
    V = (gradients / (norms.unsqueeze(1) if lengths == "equal" else 1)).numpy() / P[:, None]
    weight = cvxpy.Variable(4, nonneg=True)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(V.T @ weight)), [cvxpy.sum(weight) == 1])
    problem.solve(cvxpy.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    shortest = V.T @ weight.value
    found = combined(weigh(MinNorm(4, lengths=lengths, task_weights=PREFERENCES), gradients), gradients)
    np.testing.assert_allclose(found / found.norm(), shortest / np.linalg.norm(shortest), atol=1e-4)


@seeds
def test_mgda_is_a_convex_combination_and_equal_lengths_have_the_mean_one(seed: int) -> None:
    gradients = rows(seed)
    weights = weigh(MinNorm(4), gradients)
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights >= 0).all()
    shares = weigh(MinNorm(4, lengths="equal"), gradients) * gradients.norm(dim=1)
    assert float(shares.sum()) == pytest.approx(float(gradients.norm(dim=1).sum()))


@seeds
def test_equal_projections_agree_with_torchjd(seed: int) -> None:
    gradients = rows(seed)
    found = combined(weigh(EqualProjections(4), gradients), gradients)
    theirs = IMTLG()(gradients)
    torch.testing.assert_close(found / found.norm(), theirs / theirs.norm(), rtol=1e-4, atol=1e-6)
    projected = combined(weigh(EqualProjections(4, length="projections"), gradients), gradients)
    torch.testing.assert_close(projected, ConFIG()(gradients), rtol=1e-4, atol=1e-6)
    preferring = EqualProjections(4, length="projections", task_weights=PREFERENCES)
    expected = ConFIG(pref_vector=torch.tensor(PREFERENCES, dtype=torch.float64))(gradients)
    torch.testing.assert_close(combined(weigh(preferring, gradients), gradients), expected, rtol=1e-4, atol=1e-6)


def test_imtl_g_sums_its_weights_to_1_where_none_is_negative_and_never_turns_round() -> None:
    positive = torch.eye(3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    positive[0, 1] = 0.2
    torch.testing.assert_close(
        combined(weigh(EqualProjections(3), positive), positive), IMTLG()(positive), rtol=1e-5, atol=0
    )
    aligned = torch.tensor([[1.0, 0.0], [10.0, 1.0]], dtype=torch.float64)  # the weights of the paper: −0.12 and 1.12
    weights = weigh(EqualProjections(2), aligned)
    assert float(weights.abs().sum()) == pytest.approx(1)
    assert (aligned @ combined(weights, aligned) > 0).all()


def gradcraft(gradients: np.ndarray, tau: float, epsilon: float) -> np.ndarray:
    """Return the corrected gradients, one system of those in conflict per task."""
    norms = np.linalg.norm(gradients, axis=1)
    h = gradients * (tau * norms.max() / norms + 1 - tau)[:, None]
    corrected = h.copy()
    for m in range(len(h)):
        conflicts = [j for j in range(len(h)) if h[m] @ h[j] < 0]
        if conflicts:
            H = h[conflicts]
            lengths = np.linalg.norm(H, axis=1)
            wanted = epsilon * np.linalg.norm(h[m]) * lengths - H @ h[m]
            corrected[m] += np.linalg.solve(H @ H.T, wanted) @ H
    return corrected


@seeds
@pytest.mark.parametrize(("tau", "epsilon"), [(0.0, 0.0), (0.3, 0.1), (1.0, 1e-8)])
def test_gradcraft_agrees_with_a_plain_loop(seed: int, tau: float, epsilon: float) -> None:
    gradients = rows(seed)
    fork = GradCraft(4, tau=tau, epsilon=epsilon, task_weights=PREFERENCES)
    expected = P @ gradcraft(gradients.numpy(), tau, epsilon)
    found = combined(weigh(fork, gradients), gradients)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_gradcraft_leaves_no_conflict_where_pcgrad_may() -> None:
    gradients = rows(2)
    corrected = gradcraft(gradients.numpy(), 0.5, 0.0)
    assert (gradients.numpy() @ gradients.numpy().T < 0).any()
    assert (np.where(gradients @ gradients.T < 0, corrected @ gradients.numpy().T, 0) > -1e-9).all()


def test_metabalance_agrees_with_a_plain_loop_with_absent_tasks() -> None:
    relax, beta = 0.7, 0.9
    fork = MetaBalanceFork(["a", "b", "c", "d"], target="c", task_weights=PREFERENCES)
    e, steps = np.zeros(4), np.zeros(4)
    for seed in range(12):
        gradients = rows(seed)
        present = [True, seed % 3 != 0, seed > 2, True]  # the target comes late
        for m in range(4):
            if present[m]:
                e[m] = beta * e[m] + (1 - beta) * float(gradients[m].norm())
                steps[m] += 1
        found = weigh(fork, gradients, present)
        for m in range(4):
            if present[m]:
                known = steps[2] > 0
                ratio = (e[2] / (1 - beta ** steps[2])) / (e[m] / (1 - beta ** steps[m])) if known else 1.0
                assert float(found[m]) == pytest.approx(P[m] * (relax * ratio + 1 - relax), rel=1e-5)


def test_metabalances_state_is_matched_by_the_tasks_names() -> None:
    fork, other = MetaBalanceFork(["a", "b", "c", "d"]), MetaBalanceFork(["d", "new", "a"], target="a")
    for seed in range(3):
        weigh(fork, rows(seed))
    other.load_state_dict(fork.state_dict(), strict=False)
    torch.testing.assert_close(other.averages[:, [2, 0]], fork.averages[:, [0, 3]].float())
    assert (other.averages[:, 1] == 0).all()
