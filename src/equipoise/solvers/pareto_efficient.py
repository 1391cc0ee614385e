"""PE-LTR's weights: the min-norm weights with a least weight per task, by a linear system and a projection."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.solvers.simplex import project_simplex

__all__ = ["pareto_efficient_weights"]


def pareto_efficient_weights(gram: Tensor, /, *, least: float = 0.0) -> Tensor:
    """Return PE-LTR's weights (Lin et al., RecSys 2019, algorithm 2), given ``G_ij = ⟨g_i, g_j⟩``.

    They approximate ``min ‖Σ (w_m + c) g_m‖`` over ``w ≥ 0, Σ w_m = 1 − M c`` in two steps: the exact solution without
    ``w ≥ 0``, from the linear system ``[[G, 1], [1ᵀ, 0]] [w; ν] = [−c G 1; 1 − M c]`` (theorem 3.2 there), then its
    projection onto the constraints. Where no weight comes out negative that is the solution itself.

    The system is solved for ``G / mean_m G_mm`` by a pseudo-inverse, because G is singular for dependent gradients
    (ours). Deviation: the authors' example code, which has ``c = 0``, projects ν too, as if it were a weight.

    Args:
        gram: symmetric, positive semi-definite, with a diagonal that is finite and positive, shape [M, M].
        least: M c, the part of the weights' sum that is shared equally in any case, from 0 to 1.

    Returns:
        The weights ``w_m + c``, shape [M], with the sum 1, in the dtype and on the device of ``gram``.

    Raises:
        ValueError: ``least`` is not from 0 to 1.

    Example:
        >>> pareto_efficient_weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([0.7500, 0.2500])
        >>> pareto_efficient_weights(torch.tensor([[1.0, 0.0], [0.0, 99.0]]), least=0.5)
        tensor([0.7500, 0.2500])
    """
    if not 0 <= least <= 1:
        raise ValueError(f"least must be from 0 to 1, found {least}.")
    count = gram.shape[0]
    G = gram.double() / gram.diagonal().double().mean()
    each = least / count
    system = torch.ones(count + 1, count + 1, dtype=torch.float64, device=gram.device)
    system[:count, :count] = G
    system[count, count] = 0
    right = torch.full_like(system[0], 1 - least)
    right[:count] = -each * G.sum(1)
    unbounded = (torch.linalg.pinv(system, hermitian=True) @ right)[:count]
    return (project_simplex(unbounded, total=1 - least) + each).to(gram.dtype)
