"""MetaBalance at the fork: the other tasks' gradients brought near the length of the target task's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.fork import Fork
from equipoise.forks.preferring import Preferring

__all__ = ["MetaBalanceFork"]


class MetaBalanceFork(Preferring):
    r"""Brings the gradients of the other tasks near the length of the target task's, by averaged lengths.

    From `MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient Magnitudes of Auxiliary Tasks
    <https://arxiv.org/abs/2203.06801>`_ (strategy C), at the shared representation instead of at every parameter
    tensor, in one backward pass::

        e_m ← β e_m + (1 − β) ‖g_m‖,   ê_m = e_m / (1 − β^k_m)      k_m: steps in which task m was present
        out = Σ_m p_m g_m (r ê_t / ê_m + 1 − r)                     t the target task

    :class:`equipoise.MetaBalance` is the method on parameters. An absent task's average does not move. Before the
    target's first step the gradients stay as they are. The bias correction is ours.

    ``task_weights`` are p: next to a task of weight 1, a task of weight 9 gets 9 times the weight that it would get
    with equal preferences.

    Args:
        tasks: the tasks' names, or how many there are.
        target: the name of the target task; None: the first, as in the authors' code.
        relax: r, from 0 (the plain sum) to 1 (equal lengths).
        beta: β, at least 0 and less than 1.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.
        gram_every: measure the Gram matrix in one step out of so many, see :class:`Fork`.

    Raises:
        ValueError: an option is out of its range, or ``target`` is no task.

    Example:
        >>> fork = MetaBalanceFork(["click", "buy"], target="buy", relax=1.0)
        >>> shared = torch.ones(2, requires_grad=True)
        >>> for_click, for_buy = fork(shared)
        >>> (100 * for_click[0] + for_buy[1]).backward()
        >>> shared.grad
        tensor([1., 1.])
    """

    task_dims: ClassVar = {**Fork.task_dims, "averages": (1,)}

    averages: Tensor

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        target: str | None = None,
        relax: float = 0.7,
        beta: float = 0.9,
        task_weights: Sequence[float] | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(
            tasks, task_weights=task_weights, process_group=process_group, overlap=overlap, gram_every=gram_every
        )
        if not (0 <= relax <= 1 and 0 <= beta < 1):
            raise ValueError(f"relax must lie in [0, 1] and beta in [0, 1), found relax={relax}, beta={beta}.")
        if target is not None and target not in self.tasks:
            raise ValueError(f"target must be one of the tasks {', '.join(self.tasks)}, found {target!r}.")
        self.target = target
        self.relax = float(relax)
        self.beta = float(beta)
        self._place = 0 if target is None else self.tasks.index(target)
        # Row 0 is e, row 1 is 1 − β^k, which obeys the same recursion with 1 in the place of the norm.
        self.register_buffer("averages", torch.empty(2, len(self.tasks), dtype=self.last_weights.dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`Fork.reset_parameters`."""
        super().reset_parameters()
        self.averages.zero_()

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return ``p_m (r ê_t / ê_m + 1 − r)`` after one step of the averages; see :meth:`Fork.weigh`."""
        norms = gram.diagonal().sqrt()
        here = present.to(norms.dtype)
        self.averages.lerp_(torch.stack((norms, here)), (1 - self.beta) * here)
        average, correction = self.averages.unbind()
        lengths = average / correction  # NaN for tasks that have never been present
        ratios = lengths[self._place] / lengths
        weights = torch.where(ratios.isfinite(), self.relax * ratios + (1 - self.relax), 1.0)
        return weights if self.task_weights is None else weights * self.preferences

    def monitored(self) -> dict[str, Tensor]:
        """Return the weights and ê; see :class:`equipoise.Monitor`."""
        return super().monitored() | {"magnitude": self.averages[0] / self.averages[1]}

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return (
            f"{super().extra_repr()}, target={self.target!r}, relax={self.relax}, beta={self.beta}"
        )  # fmt: skip
