"""PIVRG at the fork: the bargaining equation, with more weight for tasks that do worse on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.bargaining import Bargaining
from equipoise.forks.fork import Fork
from equipoise.forks.preferring import Preferring

__all__ = ["PIVRG"]


class PIVRG(Bargaining):
    r"""Weighs the tasks' gradients so that ``G w = (p / w)^½``, with a larger p for tasks that do worse.

    From `Revisiting Fairness in Multitask Learning: A Performance-Driven Approach for Variance Reduction
    <https://openaccess.thecvf.com/content/CVPR2025/html/Qin_Revisiting_Fairness_in_Multitask_Learning_A_Performance-Driven_Approach_for_Variance_CVPR_2025_paper.html>`_
    (CVPR 2025; its formulas read from the authors' published code)::

        p_m = M softmax(s / T)_m,    T = max((max s − min s) / ln b, T_0)

    with s the scores of the last :meth:`note_scores`, in percent, the larger the worse; before the first all are equal,
    and this is FairGrad with α = 2. No p is more than b times another. The authors' scores are the losses of quality
    against single-task models on validation data, after each epoch.

    Solved as by :class:`Bargaining`, whose normalisation is ours here; ``task_weights`` multiply p.

    Args:
        tasks: the tasks' names, or how many there are.
        bound: b, the largest ratio of two p, above 1; the authors' is 2, and 1.8 on QM9.
        temperature: T_0, the least temperature, in percent, positive; the authors' is 10, and 100 on QM9.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.
        gram_every: measure the Gram matrix in one step out of so many, see :class:`Fork`.

    Raises:
        ValueError: ``bound``, ``temperature`` or ``task_weights`` are out of range.

    Example:
        >>> fork = PIVRG(["click", "conversion"])
        >>> fork.note_scores({"click": 60.0, "conversion": 95.0})
        >>> fork.current_preferences()
        tensor([0.6667, 1.3333])
    """

    task_dims: ClassVar = {**Fork.task_dims, "scores": (0,)}

    scores: Tensor

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        bound: float = 2.0,
        temperature: float = 10.0,
        task_weights: Sequence[float] | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(
            tasks,
            exponent=2.0,
            task_weights=task_weights,
            process_group=process_group,
            overlap=overlap,
            gram_every=gram_every,
        )
        if not (1 < bound < math.inf and 0 < temperature < math.inf):
            raise ValueError(
                f"bound must be above 1 and temperature positive, found bound={bound}, temperature={temperature}."
            )
        self.bound = float(bound)
        self.temperature = float(temperature)
        self.register_buffer("scores", torch.zeros_like(self.last_weights))

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`Fork.reset_parameters`."""
        super().reset_parameters()
        self.scores.zero_()

    def note_scores(self, scores: Mapping[str, float], /) -> None:
        """Take the tasks' scores from the host, in percent, the larger the worse; call it between steps.

        A task without a finite score keeps its last one. On several ranks all must be given the same.
        """
        known = self.scores.tolist()
        found = [scores.get(task, math.nan) for task in self.tasks]
        kept = [new if math.isfinite(new) else old for new, old in zip(found, known, strict=True)]
        self.scores.copy_(torch.tensor(kept, dtype=self.scores.dtype))

    def current_preferences(self) -> Tensor:
        """Return p, on the device, shape [M]."""
        spread = (self.scores.amax() - self.scores.amin()) / math.log(self.bound)
        shares = torch.softmax(self.scores / spread.clamp(min=self.temperature), dim=0)
        return len(self.tasks) * shares * self.preferences

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"{Preferring.extra_repr(self)}, bound={self.bound}, temperature={self.temperature}"
