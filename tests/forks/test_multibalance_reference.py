"""MultiBalance against an independent float64 reimplementation of its equations in plain numpy.

The gradients are fed exactly: with the loss `(branch * G).sum()` the gradient of that branch is `G`.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from equipoise.forks.multibalance import MultiBalance

MAGNITUDES = ("equal", "averaged", "own", "uncorrected", "none")
DIRECTIONS = ("cosine", "gram", "raw", "none")
MODES = list(itertools.product(MAGNITUDES, DIRECTIONS))
# Where gradients are long "raw" overshoots from one end of the simplex to the other, and one rounding decides all.
ANY_LENGTH = [mode for mode in MODES if mode[1] != "raw"]
STEPS = 50


def project(point: np.ndarray, mass: float) -> np.ndarray:
    """Euclidean projection on {x >= 0, sum x = mass}: bisection on the threshold."""
    if mass == 0:
        return np.zeros_like(point)
    low, high = point.min() - mass, point.max()
    for _ in range(80):
        middle = (low + high) / 2
        if np.maximum(point - middle, 0).sum() > mass:
            low = middle
        else:
            high = middle
    return np.maximum(point - (low + high) / 2, 0)


class Reference:
    """The equations of MultiBalance for flat float64 gradients; a row of None is a loss not computed."""

    def __init__(self, M, *, gamma, rho, beta, magnitude, direction, reduction="sum", task_weights=None):
        self.gamma, self.rho, self.beta = gamma, rho, beta
        self.magnitude, self.direction = magnitude, direction
        self.factor = M if reduction == "sum" else 1
        weights = np.ones(M) if task_weights is None else np.asarray(task_weights, float)
        self.preferences = M * weights / weights.sum()
        self.balance = np.full(M, 1 / M)
        self.average, self.count = np.zeros(M), np.zeros(M)
        self.longest = 0.0  # the longest of the v_m in the last step

    def corrected(self) -> np.ndarray:
        correction = 1 - (1 - self.gamma) ** self.count
        return np.divide(self.average, correction, out=np.full_like(correction, np.nan), where=self.count > 0)

    def step(self, gradients: list[np.ndarray | None]) -> np.ndarray | None:
        size = next((len(g) for g in gradients if g is not None), None)
        if size is None:
            return None
        out = np.zeros(size)
        present = []
        for m, g in enumerate(gradients):
            if g is not None and not np.isfinite(g).all():
                out = out + g
            elif g is not None and np.any(g):
                present.append(m)
        if not present:
            return out
        g = np.stack([gradients[m] for m in present])
        n = np.linalg.norm(g, axis=1)
        self.count[present] += 1
        self.average[present] = (1 - self.gamma) * self.average[present] + self.gamma * n
        corrected = self.corrected()
        r = {
            "own": corrected[present],
            "equal": np.full(len(present), corrected[self.count > 0].mean()),
            "uncorrected": self.average[present],
            "none": n,
            "averaged": n * corrected[self.count > 0].mean() / corrected[present],
        }[self.magnitude]
        v = (r / n)[:, None] * g
        self.longest = r.max()
        if self.direction != "none":
            if self.direction == "cosine":
                S = (g / n[:, None]) @ (g / n[:, None]).T
            else:
                S = v @ v.T
                S = S * len(present) / np.trace(S) if self.direction == "gram" else S
            old = self.balance[present]
            moved = old - self.beta * S @ (old + self.rho / len(gradients))
            self.balance[present] = project(moved, old.sum())
        return out + self.factor * (self.balance * self.preferences)[present] @ v


def structure_of(kind: str, parts: list) -> object:
    if kind == "tensor":
        return parts[0]
    return tuple(parts) if kind == "tuple" else {"experts": parts[0], "gate": parts[1]}


def parts_of(kind: str, structure) -> list:
    if kind == "tensor":
        return [structure]
    return list(structure) if kind == "tuple" else [structure["experts"], structure["gate"]]


def shapes_of(kind: str) -> list[tuple[int, ...]]:
    return [(6, 8)] if kind == "tensor" else [(6, 5), (6, 3, 2)]


def feed(fork, kind: str, rows: list, dtype: torch.dtype) -> np.ndarray | None:
    """One ordinary step: fork, a loss per task whose gradient is that task's row, one backward."""
    shapes = shapes_of(kind)
    leaves = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    losses = []
    for branch, row in zip(fork(structure_of(kind, leaves)), rows, strict=True):
        if row is None:
            continue
        pieces = np.split(row, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        losses += [
            (part * torch.tensor(piece, dtype=dtype).reshape(shape)).sum()
            for part, piece, shape in zip(parts_of(kind, branch), pieces, shapes, strict=True)
        ]
    if not losses:
        return None
    sum(losses).backward()
    return np.concatenate([leaf.grad.double().numpy().ravel() for leaf in leaves])


def plain_steps(generator: np.random.Generator, M: int, size: int, decades: float):
    """Every task always present; its scale, anywhere in ± `decades`, wanders by half a decade."""
    scales = 10.0 ** generator.uniform(-decades, decades, M)
    common = generator.standard_normal(size)  # so that the cosines are not all near zero
    mixing = generator.uniform(-1, 1, M)
    for _ in range(STEPS):
        wander = 10.0 ** generator.uniform(-0.5, 0.5, M)
        yield [
            scale * (generator.standard_normal(size) + a * common)
            for scale, a in zip(scales * wander, mixing, strict=True)
        ]


def interrupted_steps(generator: np.random.Generator, M: int, size: int, decades: float):
    """As `plain_steps`; in a third of its steps a task's loss is missing, or its gradient 0 or not finite."""
    for rows in plain_steps(generator, M, size, decades):
        for m in range(M):
            match generator.integers(9):
                case 0:
                    rows[m] = None
                case 1:
                    rows[m] = np.zeros(size)
                case 2:
                    rows[m][generator.integers(size)] = generator.choice([np.inf, -np.inf, np.nan])
        yield rows


def relative(found: np.ndarray, expected: np.ndarray, least: float = 0.0) -> float:
    """Norm of the difference over the norm, at least `least`, of the finite entries; the others are equal."""
    finite = np.isfinite(expected)
    assert np.isfinite(found[finite]).all(), (found, expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    norm = max(np.linalg.norm(expected[finite]), least)
    return float(np.linalg.norm(found[finite] - expected[finite]) / (norm if norm else 1.0))


def largest_errors(
    steps: Callable,
    *,
    kind: str,
    dtype: torch.dtype,
    seed: int,
    M: int = 4,
    decades: float = 3.0,
    state: torch.dtype = torch.float32,
    **options,
) -> dict[str, float]:
    """Run fork and reference side by side; the worst relative error of each quantity over all steps."""
    options = {"gamma": 0.05, "rho": 0.1, "beta": 0.3} | options
    fork = MultiBalance(M, **options).to(state)
    reference = Reference(M, **options)
    size = sum(math.prod(shape) for shape in shapes_of(kind))
    worst = {"gradient": 0.0, "magnitudes": 0.0, "balance": 0.0}
    # It may be that only a task with λ = 0 is present. There one rounding of λ (its simplex has width 1)
    # decides all, so the gradient is measured against at least a hundredth of what λ = 1 would give.
    share = 0.01 * M if steps is interrupted_steps else 0.0
    for drawn in steps(np.random.default_rng(seed), M, size, decades):
        # Both sides see the same, already rounded, numbers.
        rows = [None if row is None else torch.tensor(row, dtype=dtype).double().numpy() for row in drawn]
        expected, found = reference.step(rows), feed(fork, kind, rows, dtype)
        if expected is None:
            assert found is None
            continue
        pairs = {
            "gradient": (found, expected, share * reference.longest),
            "balance": (fork.balance.double().numpy(), reference.balance),
        }
        if fork.magnitude != "none":  # there the averages take no part, and are not kept
            pairs["magnitudes"] = (fork.magnitudes.double().numpy(), reference.corrected())
        for name, pair in pairs.items():
            worst[name] = max(worst[name], relative(*pair))
    assert fork.balance.sum().item() == pytest.approx(1.0, abs=1e-5)
    return worst


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_float32_agrees_with_the_equations_over_fifty_steps(magnitude, direction, kind):
    worst = largest_errors(
        plain_steps, kind=kind, dtype=torch.float32, seed=1, magnitude=magnitude, direction=direction
    )
    assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_task_weights_and_interrupted_tasks_agree_with_the_equations(magnitude, direction):
    worst = largest_errors(
        interrupted_steps,
        kind="dict",
        dtype=torch.float32,
        seed=6,
        magnitude=magnitude,
        direction=direction,
        task_weights=[1.0, 4.0, 0.5, 2.0],
    )
    assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize(("magnitude", "direction"), ANY_LENGTH)
def test_scales_over_eighteen_decades_agree_with_the_equations(magnitude, direction):
    worst = largest_errors(
        interrupted_steps,
        kind="tensor",
        dtype=torch.float32,
        seed=7,
        decades=9.0,
        magnitude=magnitude,
        direction=direction,
    )
    assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize("options", [{"beta": 1.0, "gamma": 1.0}, {"beta": 0.05, "rho": 0.0, "gamma": 0.01}])
@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_every_coefficient_enters_as_in_the_equations(magnitude, direction, options):
    worst = largest_errors(
        interrupted_steps,
        kind="tensor",
        dtype=torch.float32,
        seed=11,
        decades=1.0,
        magnitude=magnitude,
        direction=direction,
        **options,
    )
    assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize("M", [1, 2, 8])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_any_number_of_tasks_agrees_with_the_equations(M, direction):
    worst = largest_errors(
        interrupted_steps,
        kind="tuple",
        dtype=torch.float32,
        seed=5,
        M=M,
        magnitude="equal",
        direction=direction,
        beta=0.001 if direction == "raw" else 0.1,
        decades=0.0 if direction == "raw" else 3.0,
    )
    assert max(worst.values()) < 1e-4, worst


@pytest.mark.parametrize(("state", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_float64_gradients_agree_as_far_as_the_precision_of_the_state_goes(magnitude, direction, state, bound):
    worst = largest_errors(
        interrupted_steps,
        kind="tuple",
        dtype=torch.float64,
        seed=3,
        magnitude=magnitude,
        direction=direction,
        state=state,
    )
    assert max(worst.values()) < bound, worst


@pytest.mark.parametrize("decades", [0.0, 3.0])
def test_the_form_of_the_source_agrees_with_its_equations(decades):
    literal = {"magnitude": "uncorrected", "direction": "raw", "reduction": "mean", "gamma": 0.01, "beta": 1.0}
    worst = largest_errors(
        interrupted_steps, kind="tuple", dtype=torch.float32, seed=8, decades=decades, task_weights=None, **literal
    )
    assert max(worst.values()) < 1e-4, worst
