"""The bargaining equation Gα = 1/α of Nash-MTL and PUB, by a damped Newton method."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bargaining_weights"]

ITERATIONS = 18  # well conditioned matrices need 4; opposed tasks, where only the ridge bounds α, need 16
STEP_BOUND = 0.9  # the largest share of an entry of α that one step may take away


def bargaining_weights(gram: Tensor, /, present: Tensor | None = None, *, ridge: float = 1e-6) -> Tensor:
    """The α > 0 with ``G α = 1/α`` element by element (PUB, arXiv 2410.05806; Nash-MTL, arXiv 2202.01017,
    eq. 4).

    This is the stationarity condition of the strictly convex ``½ αᵀGα − Σ log α_m``. It is solved on the
    cosines, ``(C + ridge·I) a = 1/a`` and ``α_m = a_m / ‖u_m‖``, so that the scales of the tasks do not
    matter. The ridge is ours: without it there is no finite solution for opposed tasks. For two tasks ``α_m
    = 1/(‖u_m‖ √(1 + cos + ridge))``.

    Args:
        gram: symmetric, positive semi-definite, shape [M, M].
        present: bool, shape [M].
        ridge: added to the diagonal of the cosines, > 0; no task's ``α_m ‖u_m‖`` can exceed ``√(M /
            ridge)``. It must stay above the rounding error of ``gram``, which the default does for one
            computed in float32.

    Returns:
        α, shape [M], in the dtype and on the device of ``gram``; found in float64 without a host sync. A
        task that is absent, or whose norm is zero or not finite, takes no part: its α is 0, and the others
        are solved without it.

    Example:
        >>> bargaining_weights(torch.tensor([[4.0, 0.0], [0.0, 0.25]]))
        tensor([0.5000, 2.0000])
    """
    squared = gram.diagonal().double()
    usable = (squared > 0) & (squared < torch.inf)
    if present is not None:
        usable = usable & present
    inverse = torch.where(usable, squared, 1.0).rsqrt()
    cosines = torch.where(usable & usable[:, None], gram.double() * inverse * inverse[:, None], 0.0)
    count = gram.shape[0]
    if count == 2:
        solution = torch.rsqrt(1 + ridge + cosines[0, 1])
    else:
        identity = torch.eye(count, dtype=torch.float64, device=gram.device)
        # A task without part becomes one that is orthogonal to all others: it leaves their solution as it is.
        cosines = torch.where(identity.bool(), 1 + ridge, cosines)
        solution = _newton(cosines, identity)
    return torch.where(usable, solution * inverse, 0.0).to(gram.dtype)


def _newton(C: Tensor, identity: Tensor) -> Tensor:
    """The minimiser of ``½ aᵀCa − Σ log a`` for positive definite C.

    Every step is followed by the exact minimisation along the ray through a, where ``aᵀCa = M``: that alone
    covers the long way to the large solutions of nearly singular C.
    """
    count = C.shape[0]
    a = C.sum().mul_(1 / count).rsqrt_().expand(count)
    for _ in range(ITERATIONS):
        inverse = a.reciprocal()
        factor = torch.linalg.cholesky_ex(torch.addcmul(C, identity, inverse * inverse)).L
        gradient = torch.addmv(inverse, C, a, beta=-1)
        relative = torch.cholesky_solve(gradient.unsqueeze(1), factor).squeeze(1) * -inverse
        damping = (relative.amin() * (-1 / STEP_BOUND)).clamp(min=1).reciprocal()
        a = a + a * relative * damping
        a = a * (torch.dot(a, torch.mv(C, a)) / count).rsqrt()
    return a
