"""IMTL-G and ConFIG at the fork: what flows on has equal projections on all tasks' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.preferring import Preferring
from equipoise.solvers import equal_projection_weights

__all__ = ["EqualProjections"]

Length = Literal["weights", "projections"]


class EqualProjections(Preferring):
    r"""Weighs the tasks' gradients so that what flows on has the same projection on each of them.

    With ``n_m = ‖g_m‖`` and d the vector for which ``⟨g_m, d⟩ / n_m = p_m`` for every task, ``out = c d``:

    ===============  ==============================================================================================
    ``length``       the factor c > 0
    ===============  ==============================================================================================
    "weights"        such that the weights' absolute values sum to 1: `Towards Impartial Multi-task Learning
                     <https://openreview.net/forum?id=IMPnRXEWpvr>`_ (IMTL-G, section 3.1). The paper lets the weights
                     themselves sum to 1, which is the same unless some are negative; then its factor may be as large
                     as you like, or negative, so that all losses rise.
    "projections"    such that ``‖out‖ = Σ_m ⟨g_m, out⟩ / ‖out‖``: `ConFIG <https://arxiv.org/abs/2408.11104>`_ (eq. 2
                     and 3), whose direction is that of IMTL-G.
    ===============  ==============================================================================================

    ``task_weights`` are p: next to a task of weight 1, what flows on has 9 times the projection on the gradient of a
    task of weight 9.

    Costs one Cholesky solve of an M×M matrix per step, without a host sync; torchjd's pseudoinverse waits for the
    device. Gradients that depend on each other are treated by the ridge of
    :func:`equipoise.solvers.equal_projection_weights`.

    Args:
        tasks: the tasks' names, or how many there are.
        length: "weights" or "projections", see above.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.
        gram_every: measure the Gram matrix in one step out of so many, see :class:`Fork`.

    Raises:
        ValueError: ``length`` is neither, or ``task_weights`` are not one positive number per task.

    Example:
        >>> fork = EqualProjections(["click", "conversion"])
        >>> shared = torch.ones(2, requires_grad=True)
        >>> for_click, for_conversion = fork(shared)
        >>> (for_click[0] + 3 * for_conversion[1]).backward()
        >>> fork.last_weights
        tensor([0.7500, 0.2500])
    """

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        length: Length = "weights",
        task_weights: Sequence[float] | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(
            tasks, task_weights=task_weights, process_group=process_group, overlap=overlap, gram_every=gram_every
        )
        if length not in get_args(Length):
            raise ValueError(f"length must be one of {get_args(Length)}, found {length!r}.")
        self.length: Length = length

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return the weights of the gradients in ``out``; see :meth:`Fork.weigh`."""
        wide, wanted = gram.double(), self.preferences.double()
        weights = equal_projection_weights(wide, present, preferences=wanted)
        tiny = torch.finfo(wide.dtype).tiny
        if self.length == "weights":
            total = weights.abs().sum()
        else:  # ⟨g_m, d⟩ = p_m n_m, and the squared length of d is Σ w_m ⟨g_m, d⟩
            along = wide.diagonal().sqrt() * wanted
            total = (weights * along).sum() / along.sum().clamp(min=tiny)
        return (weights / total.clamp(min=tiny)).to(gram.dtype)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"{super().extra_repr()}, length={self.length!r}"
