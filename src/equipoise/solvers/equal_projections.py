"""The combination of vectors whose projections on all of them are given, by one linear system."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["equal_projection_weights"]


def equal_projection_weights(
    gram: Tensor, /, present: Tensor | None = None, *, preferences: Tensor | None = None, ridge: float = 1e-6
) -> Tensor:
    """Return the weights w for which ``d = Σ w_m v_m`` has the projection ``⟨v_m, d⟩ / ‖v_m‖ = p_m`` on every vector.

    With ``w_m = s_m / ‖v_m‖`` this is ``C s = p``, C the cosines. The solution is that of ``(C + ridge·I) s = p``,
    so that it exists for vectors that depend on each other, too; with opposed vectors it is large, and d is not.

    Args:
        gram: symmetric, positive semi-definite, shape [M, M].
        present: bool, shape [M].
        preferences: p, shape [M]; all 1 if not given.
        ridge: added to the diagonal of the cosines, > 0.

    Returns:
        w, of either sign, shape [M], in the dtype and on the device of ``gram``; found in float64 without a host sync.
        A vector that is absent, or whose norm is zero or not finite, takes no part, and its weight is 0.

    Example:
        >>> equal_projection_weights(torch.tensor([[4.0, 0.0], [0.0, 0.25]]), ridge=1e-12)
        tensor([0.5000, 2.0000])
    """
    squared = gram.diagonal().double()
    usable = (squared > 0) & (squared < torch.inf)
    if present is not None:
        usable = usable & present
    inverse = torch.where(usable, squared, 1.0).rsqrt()
    cosines = torch.where(usable & usable[:, None], gram.double() * inverse * inverse[:, None], 0.0)
    identity = torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    factor = torch.linalg.cholesky_ex(torch.where(identity, 1 + ridge, cosines)).L
    wanted = torch.ones_like(inverse) if preferences is None else preferences.double()
    wanted = torch.where(usable, wanted, 0.0)
    solution = torch.cholesky_solve(wanted.unsqueeze(1), factor).squeeze(1)
    return (solution * inverse).to(gram.dtype)
