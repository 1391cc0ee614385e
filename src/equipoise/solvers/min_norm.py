"""The point of least norm in the convex hull of M vectors, known only by their Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["min_norm_weights"]

ITERATIONS = 14  # gives 1e-6 on the hardest of the tests' matrices, 1e-13 on most
CENTERING = 0.05  # how much of the complementarity one iteration leaves
TO_BOUNDARY = 0.99  # how far towards the boundary of x, y > 0 one step may go
RIDGE = 1e-13  # keeps the factorisation alive where vectors are linearly dependent


def min_norm_weights(gram: Tensor, /, present: Tensor | None = None) -> Tensor:
    """Return the weights λ on the simplex that minimise ``‖Σ λ_m v_m‖`` (Désidéri 2012), given ``G_ij = ⟨v_i, v_j⟩``.

    ``λᵀGλ`` is then the squared distance from Pareto stationarity. M = 2 has a closed form; above that a
    primal-dual interior-point method runs a fixed number of iterations on the equivalent ``min ½ xᵀ(C +
    ssᵀ)x − sᵀx, x ≥ 0``, where C holds the cosines and ``s_m = min_j ‖v_j‖ / ‖v_m‖``, so that the scales of
    the vectors do not matter.

    Args:
        gram: symmetric, positive semi-definite, shape [M, M].
        present: bool, shape [M]; other tasks get the weight 0. A task with a non-finite norm counts as
            absent. If no task is left, all weights are 0.

    Returns:
        The weights, shape [M], in the dtype and on the device of ``gram``; found in float64 without a host
        sync.

    Example:
        >>> min_norm_weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([0.7500, 0.2500])
    """
    squared = gram.diagonal().double()
    usable = squared.isfinite() & (squared >= 0)
    if present is not None:
        usable = usable & present
    G = torch.where(usable & usable[:, None], gram.double(), 0.0)
    norms = torch.where(usable, squared, torch.inf).sqrt()
    norms = norms.clamp(min=1e-12 * torch.where(usable, norms, 0.0).amax().clamp(min=1e-140))
    inverse = norms.reciprocal()
    scale = torch.where(usable, inverse * norms.amin(), 0.0)
    if gram.shape[0] == 2:
        return _of_two(G, usable).to(gram.dtype)
    H = G * inverse * inverse[:, None] + torch.outer(scale, scale)
    identity = torch.eye(gram.shape[0], dtype=H.dtype, device=H.device)
    H = torch.where(usable, H, identity) + RIDGE * identity
    gain = torch.where(usable, scale, -1.0)  # an absent task's optimum is x = 0 with a slack of 1
    x = y = torch.ones_like(scale)
    for _ in range(ITERATIONS):
        target = torch.dot(x, y) * (CENTERING / gram.shape[0]) / x
        ratio = y / x
        factor = torch.linalg.cholesky_ex(torch.addcmul(H, identity, ratio)).L
        right = torch.addmv(gain, H, x, alpha=-1) + target
        dx = torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)
        dy = torch.addcmul(target - y, ratio, dx, value=-1)
        state, change = torch.stack((x, y)), torch.stack((dx, dy))
        length = -TO_BOUNDARY / (change / state).amin().clamp(max=-TO_BOUNDARY)
        x, y = torch.addcmul(state, change, length).unbind()
    weights = x * scale
    return (weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)).to(gram.dtype)


def _of_two(G: Tensor, usable: Tensor) -> Tensor:
    """Find where the segment between two points is nearest to the origin; a task that is not usable gets 0."""
    numerator = G[1, 1] - G[0, 1]
    denominator = G[0, 0] - 2 * G[0, 1] + G[1, 1]
    first = torch.where(denominator > 0, numerator / denominator, 0.5).clamp(0, 1)
    both = torch.stack((first, 1 - first))
    return torch.where(usable.all(), both, usable.to(both.dtype))
