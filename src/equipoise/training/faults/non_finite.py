"""Losses and gradients that are not finite: find them, count them by task, leave them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from equipoise.training.ranks.world import World

if TYPE_CHECKING:
    from equipoise.training.run import Run

__all__ = [
    "NonFiniteError",
    "NonFiniteLosses",
    "all_finite",
    "finite_losses",
    "leave_out_non_finite",
    "mark_non_finite_gradient",
    "mark_non_finite_own_gradients",
]

_STEPS_PER_COUNT: Final = 100


class NonFiniteError(RuntimeError):
    """A loss or a prediction was not finite: the message names the tasks and the step.

    Attributes:
        run: the record up to there, with the status "diverged".
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


class NonFiniteLosses:
    """Counts the steps in which a task's loss is not finite (or NaN because its gradient is not), on the device.

    A step counts for a task if it counts on any rank. The ranks exchange their counts when they are read and every 100
    steps, so that no other step waits for it.
    """

    def __init__(self, world: World, tasks: Sequence[str]) -> None:
        self.world = world
        self.tasks = tasks
        self._steps = torch.zeros(len(tasks), dtype=torch.int64, device=world.device)
        self._first = torch.zeros_like(self._steps)
        self._bad = torch.zeros(_STEPS_PER_COUNT, len(tasks), dtype=torch.int32, device=world.device)
        self._step_of = torch.zeros(_STEPS_PER_COUNT, dtype=torch.int64, device=world.device)
        self._uncounted = 0  # rows of _bad

    def add(self, losses: Tensor, step: int) -> None:
        """Count the losses of a step, shape [M]."""
        self._bad[self._uncounted] = losses.isfinite().logical_not_()
        self._step_of[self._uncounted].fill_(step)  # on the device, without a copy from the host
        self._uncounted += 1
        if self._uncounted == len(self._bad):
            self._count()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts of all ranks so far; all ranks must ask."""
        self._count()
        return {"steps": self._steps.cpu(), "first": self._first.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on counting from a state that :meth:`state_dict` gave."""
        self._steps, self._first = state["steps"].to(self.world.device), state["first"].to(self.world.device)

    def read(self) -> dict[str, tuple[int, int]]:
        """Return, for each task that has any, the number of steps and the first of them.

        All ranks must ask. Waits for the device.
        """
        found = self.state_dict()
        steps, first = found["steps"].tolist(), found["first"].tolist()
        return {task: (steps[m], first[m]) for m, task in enumerate(self.tasks) if steps[m]}

    def _count(self) -> None:
        if not self._uncounted:
            return
        bad = self._bad[: self._uncounted]
        if self.world.size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        first = self._step_of[bad.argmax(0)]  # argmax gives the first of equal maxima
        self._first = torch.where((self._steps == 0) & bad.any(0), first, self._first)
        self._steps += bad.sum(0)
        self._uncounted = 0


def finite_losses(losses: Sequence[Tensor], world: World, /, *, together: bool) -> Tensor:
    """Return which tasks' losses are finite, bool, shape [M], on the device.

    Args:
        together: a loss must be finite on all ranks, all of which must ask.
    """
    finite = torch.stack([loss.detach() for loss in losses]).isfinite()
    if together and world.size > 1:
        on_all = finite.to(torch.int32)
        dist.all_reduce(on_all, dist.ReduceOp.MIN)
        finite = on_all.bool()
    return finite


def mark_non_finite_gradient(logits: Tensor, finite: Tensor, /, *, skip: bool) -> None:
    """Mark a task in the backward pass if its gradient at its logits is not finite; each rank marks for itself.

    Args:
        finite: whether the task's loss is finite, a boolean scalar on the device; the backward pass changes it.
        skip: replace the gradient of a marked task by 0, which makes the task absent at a fork.
    """

    def mark(gradient: Tensor | None) -> Tensor | None:
        if gradient is None:  # another task's backward pass, over logits that were taken out of one tensor
            return None
        finite.logical_and_(gradient.isfinite().all())
        # A copy, because a later pass changes `finite` before this one has been differentiated.
        return torch.where(finite.clone(), gradient, 0.0) if skip else None

    if logits.requires_grad:
        logits.register_hook(mark)  # type: ignore[no-untyped-call]


def mark_non_finite_own_gradients(own: Sequence[Iterable[Parameter]], finite: Sequence[Tensor], /) -> None:
    """Mark tasks whose own parameters have a gradient that is not finite: it may overflow behind finite logits.

    Args:
        own: the parameters of each task that no other task uses.
        finite: see :func:`mark_non_finite_gradient`, one for each of ``own``; changed in place.
    """
    by_task = [[_local_values(p.grad) for p in parameters if p.grad is not None] for parameters in own]
    if gradients := list(chain.from_iterable(by_task)):
        # A sum is finite only if all its terms are, and the sum of absolute values takes one pass.
        found = torch.stack(torch._foreach_norm(gradients, 1)).isfinite()
        for good, part in zip(finite, torch.split(found, [len(part) for part in by_task]), strict=True):
            good.logical_and_(part.all())


def leave_out_non_finite(parameters: Sequence[Parameter]) -> None:
    """Replace entries of gradients that are not finite by 0.

    A task that sends back 0 still has gradients of 0 · ∞ where a feature or an activation is infinite.
    """
    for gradient in (p.grad for p in parameters if p.grad is not None):
        (gradient._values() if gradient.is_sparse else gradient).nan_to_num_(0.0, 0.0, 0.0)


def _local_values(gradient: Tensor) -> Tensor:
    """Return the part of a sharded gradient that this rank holds, and the values of a sparse one."""
    local: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local._values() if local.is_sparse else local


def all_finite(parameters: Sequence[Parameter], losses: Sequence[Tensor], world: World) -> bool:
    """Return whether all losses and gradients of all ranks are finite. Waits for the device."""
    values = [loss.detach() for loss in losses] + [
        _local_values(p.grad).sum() for p in parameters if p.grad is not None
    ]
    bad = torch.stack(values).isfinite().logical_not().any().to(torch.int32)
    if world.size > 1:
        dist.all_reduce(bad, dist.ReduceOp.MAX)
    return not bad.item()
