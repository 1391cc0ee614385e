"""The bargaining equation G w = (p / w)^(1/a) of Nash-MTL, PUB, FairGrad and PIVRG, by a damped Newton method."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.solvers.iterating import iterated

__all__ = ["bargaining_weights"]

ITERATIONS = 18  # for the exponent 1: well conditioned matrices need 4; opposed tasks, which the ridge bounds, need 16
FURTHER_ITERATIONS = 25  # for other exponents than 1; more bring nothing on any sample of the tests
STEP_BOUND = 0.9  # the largest share of an entry of w that one step may take away


def bargaining_weights(
    gram: Tensor,
    /,
    present: Tensor | None = None,
    *,
    preferences: Tensor | None = None,
    exponent: float = 1.0,
    ridge: float = 1e-6,
) -> Tensor:
    """Return the w > 0 with ``G w = (p / w)^(1/a)`` element by element; p are the preferences, a is the exponent.

    With a = 1 this is the equation of Nash-MTL (arXiv 2202.01017, eq. 4) and PUB (arXiv 2410.05806), and the
    utilities ``w_m (G w)_m`` are exactly p_m. Any a is FairGrad (arXiv 2402.15638, with α = a): the larger a, the more
    the task that gains least counts. a = 2 with p from scores is PIVRG.

    The equation is the stationarity condition of the strictly convex

        ½ wᵀGw − Σ_m p_m^(1/a) φ(w_m),    φ(w) = log w for a = 1,  w^(1 − 1/a) / (1 − 1/a) otherwise.

    It is solved on the cosines C: with ``w_m = s_m / ‖u_m‖`` and ``q_m = p_m^(1/a) ‖u_m‖^(1/a − 1)`` it reads
    ``(C + ridge·I) s = q s^(−1/a)``, and for a = 1 the scales of the tasks do not matter. The ridge is ours: without it
    there is no finite solution for opposed tasks. For two tasks, a = 1 and equal preferences
    ``w_m = 1/(‖u_m‖ √(1 + cos + ridge))``.

    Args:
        gram: symmetric, positive semi-definite, shape [M, M].
        present: bool, shape [M].
        preferences: p, positive, shape [M]; all 1 if not given.
        exponent: a, positive.
        ridge: added to the diagonal of the cosines, > 0; with a = 1 and p = 1 no task's ``w_m ‖u_m‖`` can exceed
            ``√(M / ridge)``. It must stay above the rounding error of ``gram``, which the default does for one
            computed in float32.

    Returns:
        w, shape [M], in the dtype and on the device of ``gram``; found in float64 without a host sync. A
        task that is absent, or whose norm is zero or not finite, takes no part: its weight is 0, and the others
        are solved without it.

    Raises:
        ValueError: ``exponent`` is not positive.

    Example:
        >>> bargaining_weights(torch.tensor([[4.0, 0.0], [0.0, 0.25]]))
        tensor([0.5000, 2.0000])
        >>> gram, wanted = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64), torch.tensor([9.0, 1.0])
        >>> weights = bargaining_weights(gram, preferences=wanted)
        >>> weights * (gram @ weights)
        tensor([9.0000, 1.0000], dtype=torch.float64)
    """
    if not exponent > 0:
        raise ValueError(f"exponent must be positive, found {exponent}.")
    squared = gram.diagonal().double()
    usable = (squared > 0) & (squared < torch.inf)
    if present is not None:
        usable = usable & present
    inverse = torch.where(usable, squared, 1.0).rsqrt()
    cosines = torch.where(usable & usable[:, None], gram.double() * inverse * inverse[:, None], 0.0)
    count = gram.shape[0]
    if count == 2 and preferences is None and exponent == 1:
        solution = torch.rsqrt(1 + ridge + cosines[0, 1])
    else:
        identity = torch.eye(count, dtype=torch.float64, device=gram.device)
        # A task without part becomes one that is orthogonal to all others: it leaves their solution as it is.
        cosines = torch.where(identity.bool(), 1 + ridge, cosines)
        solution = _newton(cosines, identity, preferences if exponent == 1 else None, usable)
        if exponent != 1:
            power = 1 / exponent
            pull = inverse ** (1 - power)
            if preferences is not None:
                pull = pull * preferences.double() ** power
            solution = _follow(cosines, solution, torch.where(usable, pull, 1.0), power)
    return torch.where(usable, solution * inverse, 0.0).to(gram.dtype)


def _newton(C: Tensor, identity: Tensor, preferences: Tensor | None, usable: Tensor) -> Tensor:
    """Return the minimiser of ``½ sᵀCs − Σ p log s`` for positive definite C, where ``C s = p / s``.

    Each step is followed by the exact minimisation along the ray through s, where ``sᵀCs = Σ p``. Without it, the large
    solutions of nearly singular C would take many steps to reach.
    """
    count = C.shape[0]
    if preferences is None:
        s = C.sum().mul_(1 / count).rsqrt_().expand(count)
        p: Tensor | float = 1.0
        total: Tensor | float = count
    else:
        p = torch.where(usable, preferences.double(), 1.0)
        total = p.sum()
        s = p.sqrt()  # the solution for orthogonal tasks

    def step(s: Tensor) -> Tensor:
        inverse = s.reciprocal()
        slope = inverse if preferences is None else p * inverse
        factor = torch.linalg.cholesky_ex(torch.addcmul(C, identity, slope * inverse)).L
        gradient = torch.addmv(slope, C, s, beta=-1)
        relative = torch.cholesky_solve(gradient.unsqueeze(1), factor).squeeze(1) * -inverse
        damping = (relative.amin() * (-1 / STEP_BOUND)).clamp(min=1).reciprocal()
        s = s + s * relative * damping
        return s * (torch.dot(s, torch.mv(C, s)) / total).rsqrt()

    return iterated(step, s, ITERATIONS)


def _follow(C: Tensor, s: Tensor, q: Tensor, b: float) -> Tensor:
    """Return the s > 0 with ``C s = q s^(−b)``, from the solution for ``q = 1, b = 1``, where ``C s`` is positive.

    Newton's method on ``log (C s) + b log s = log q``, with both s and C s kept positive. The logarithms are
    there because a solution may lie many powers of ten from the start, where steps on the equation itself are slow.
    """
    goal = q.log()

    def step(state: Tensor) -> Tensor:
        s, Cs = state.unbind()
        off = Cs.log() + b * s.log() - goal
        factor = torch.linalg.cholesky_ex(C + torch.diag(b * Cs / s)).L
        change = torch.cholesky_solve((-Cs * off).unsqueeze(1), factor).squeeze(1)
        of_product = C @ change
        smallest = torch.cat((change / s, of_product / Cs)).amin()
        damping = (smallest * (-1 / STEP_BOUND)).clamp(min=1).reciprocal()
        return torch.stack((s + damping * change, Cs + damping * of_product))

    return iterated(step, torch.stack((s, C @ s)), FURTHER_ITERATIONS)[0]
