"""A fork that takes its weights from a given function of the Gram matrix, or from fixed numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.preferring import Preferring

__all__ = ["Weighted"]


class Weighted(Preferring):
    r"""Weighs the tasks' gradients by a function of their Gram matrix, or by fixed numbers.

    What flows on upstream is ``Σ_m w_m g_m`` with ``w = weighting(G)``, ``G_ij = ⟨g_i, g_j⟩`` over the global batch.
    Any ``Weighting`` of torchjd that takes a Gram matrix fits: ``Weighted(tasks, MGDAWeighting())``.

    A function sees the rows and columns of the tasks present in the step only, in the order of ``tasks``, and is not
    called where no task is present. On an accelerator the step waits for the device, because the shape of the
    function's input depends on which are present; so such a fork cannot be used in a captured CUDA graph or in a model
    compiled with ``fullgraph=True``. Fixed numbers have neither limit.

    ``task_weights`` multiply the weights after the function, which is not told of them: next to a task of weight 1, a
    task of weight 9 gets 9 times the weight that it would get with equal preferences. What the function promises of its
    own weights, such as no conflict, need not hold of these.

    Args:
        tasks: the tasks' names, or how many there are.
        weighting: from a symmetric matrix of shape [K, K], K the number of present tasks, float32 or wider, to
            weights of shape [K]; or one finite number per task. A module becomes a part of the fork, with its state.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        process_group: the ranks that share a global batch; the default group if None.

    Raises:
        ValueError: ``weighting`` is neither a function nor one finite number per task, or ``task_weights`` are not one
            positive number per task; in the backward pass, if the function does not return one weight per task.

    Example:
        >>> fork = Weighted(["click", "like"], lambda gram: 1 / gram.diagonal().sqrt())
        >>> shared = torch.ones(4, 3, requires_grad=True)
        >>> for_click, for_like = fork(shared)
        >>> (for_click.sum() + 5 * for_like.sum()).backward()
        >>> bool(torch.isclose(fork.last_weights[0], 5 * fork.last_weights[1]))
        True
    """

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        weighting: Callable[[Tensor], Tensor] | Sequence[float],
        *,
        task_weights: Sequence[float] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(tasks, task_weights=task_weights, process_group=process_group)
        if not callable(weighting):
            weighting = _fixed(weighting, self.tasks)
            self.fixed = torch.tensor(weighting, dtype=self.last_weights.dtype)
        self.weighting = weighting

    @property
    def mixes_examples(self) -> bool:
        """True for a function of the whole batch's Gram matrix, False for fixed numbers."""
        return callable(self.weighting)

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return the weights of ``weighting`` for the present tasks, 0 for the others; see :meth:`Fork.weigh`."""
        weights = self.unpreferred(gram, present)
        return weights if self.task_weights is None else weights * self.preferences

    def unpreferred(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return the weights before the preferences multiply them; arguments as of :meth:`Fork.weigh`."""
        if not callable(self.weighting):
            return self.fixed.to(gram.dtype)
        here = present.nonzero().squeeze(1)
        weights = torch.zeros_like(gram[0])
        if not len(here):
            return weights
        found = self.weights_of(gram[here.unsqueeze(1), here], here)
        if not isinstance(found, Tensor) or found.shape != here.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"The weighting of a fork must return one weight per present task: expected a tensor of shape "
                f"[{len(here)}] for a Gram matrix of shape [{len(here)}, {len(here)}], found {shape}."
            )
        return weights.index_copy_(0, here, found.to(weights))

    def weights_of(self, gram: Tensor, tasks: Tensor, /) -> Tensor:
        """Return the weights of the present tasks by the function; a subclass may keep a state for each task.

        Args:
            gram: the Gram matrix of the present tasks, shape [K, K], K at least 1.
            tasks: their places among all tasks, ascending, shape [K].
        """
        assert callable(self.weighting)
        return self.weighting(gram)

    def extra_repr(self) -> str:
        """Return the constructor's arguments; a module is shown as a part of the fork."""
        shown = "" if isinstance(self.weighting, torch.nn.Module) else f", weighting={self.weighting!r}"
        return f"{super().extra_repr()}{shown}"


def _fixed(weights: Sequence[float], tasks: Sequence[str]) -> tuple[float, ...]:
    usable = isinstance(weights, Sequence) and all(type(weight) in {int, float} for weight in weights)
    if not usable or len(weights) != len(tasks) or not all(math.isfinite(weight) for weight in weights):
        raise ValueError(
            f"weighting must be a function of the Gram matrix, or a list of {len(tasks)} finite numbers, one for each "
            f"of {', '.join(tasks)}; found {weights!r}."
        )
    return tuple(float(weight) for weight in weights)
