"""What happens when a loss or a gradient is not finite: who, when, how often, and whether training goes on."""

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
    "look_at_gradients",
    "watch",
]

_STEPS_APART: Final = 100


class NonFiniteError(RuntimeError):
    """A loss, or a prediction, was not finite: the message names the tasks and the step.

    Attributes:
        run: the record up to there, with the status "diverged".
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


class NonFiniteLosses:
    """Counts the steps in which a task's loss is not finite (or NaN because its gradient is not), on the device.

    Of several ranks a step counts for a task if it does on any of them. They tell each other when it is read, and every
    100 steps, so that no step waits for it.
    """

    def __init__(self, world: World, tasks: Sequence[str]) -> None:
        self.world = world
        self.tasks = tasks
        self._steps = torch.zeros(len(tasks), dtype=torch.int64, device=world.device)
        self._first = torch.zeros_like(self._steps)
        self._bad = torch.zeros(_STEPS_APART, len(tasks), dtype=torch.int32, device=world.device)
        self._seen: list[int] = []

    def see(self, losses: Tensor, step: int) -> None:
        """The losses of a step, shape [M]."""
        self._bad[len(self._seen)] = losses.isfinite().logical_not_()
        self._seen.append(step)
        if len(self._seen) == len(self._bad):
            self._count()

    def state_dict(self) -> dict[str, Tensor]:
        """The counts so far, of all ranks."""
        self._count()
        return {"steps": self._steps.cpu(), "first": self._first.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on counting from there."""
        self._steps, self._first = state["steps"].to(self.world.device), state["first"].to(self.world.device)

    def read(self) -> dict[str, tuple[int, int]]:
        """Task -> in how many steps, and the first of them; of all ranks, which must all ask. Waits for the device."""
        found = self.state_dict()
        steps, first = found["steps"].tolist(), found["first"].tolist()
        return {task: (steps[m], first[m]) for m, task in enumerate(self.tasks) if steps[m]}

    def _count(self) -> None:
        if not self._seen:
            return
        bad = self._bad[: len(self._seen)]
        if self.world.size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        numbers = torch.tensor(self._seen, device=bad.device)
        first = numbers[bad.argmax(0)]  # of equal ones the first; 0 everywhere where there is none
        self._first = torch.where((self._steps == 0) & bad.any(0), first, self._first)
        self._steps += bad.sum(0)
        self._seen = []


def finite_losses(losses: Sequence[Tensor], world: World, /, *, together: bool) -> Tensor:
    """Which tasks' losses are finite, bool, shape [M], on the device; ``together``: on all ranks, which all ask."""
    finite = torch.stack([loss.detach() for loss in losses]).isfinite()
    if together and world.size > 1:
        on_all = finite.to(torch.int32)
        dist.all_reduce(on_all, dist.ReduceOp.MIN)
        finite = on_all.bool()
    return finite


def watch(logits: Tensor, finite: Tensor, /, *, spare: bool) -> None:
    """Look at a task's gradient at its logits, too, in the backward pass; of several ranks each looks at its own.

    Args:
        finite: whether the task's loss is finite, a boolean scalar on the device, which the backward pass changes.
        spare: let the task send back a gradient of 0 if not, with which it is absent at a fork.
    """

    def look(gradient: Tensor) -> Tensor | None:
        finite.logical_and_(gradient.isfinite().all())
        return torch.where(finite, gradient, 0.0) if spare else None

    if logits.requires_grad:
        logits.register_hook(look)  # type: ignore[no-untyped-call]


def look_at_gradients(own: Sequence[Iterable[Parameter]], finite: Sequence[Tensor], /) -> None:
    """Look at the gradients of the tasks' own parameters, too: they may overflow where those at the logits did not.

    Args:
        finite: see :func:`watch`, one for each of ``own``; changed in place.
    """
    by_task = [[_numbers(p.grad) for p in parameters if p.grad is not None] for parameters in own]
    if gradients := list(chain.from_iterable(by_task)):
        # A sum is finite only if all its terms are, and the sum of absolute values takes one pass.
        found = torch.stack(torch._foreach_norm(gradients, 1)).isfinite()
        for good, part in zip(finite, torch.split(found, [len(part) for part in by_task]), strict=True):
            good.logical_and_(part.all())


def leave_out_non_finite(parameters: Sequence[Parameter]) -> None:
    """Entries of gradients that are not finite become 0.

    A task that sends back 0 has gradients of 0 · ∞ behind a feature or an activation that is infinite.
    """
    for gradient in (p.grad for p in parameters if p.grad is not None):
        (gradient._values() if gradient.is_sparse else gradient).nan_to_num_(0.0, 0.0, 0.0)


def _numbers(gradient: Tensor) -> Tensor:
    """What this rank holds of it."""
    local: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local._values() if local.is_sparse else local


def all_finite(parameters: Sequence[Parameter], losses: Sequence[Tensor], world: World) -> bool:
    """Whether all losses and gradients of all ranks are finite; waits for the device."""
    values = [loss.detach() for loss in losses] + [_numbers(p.grad).sum() for p in parameters if p.grad is not None]
    bad = torch.stack(values).isfinite().logical_not().any().to(torch.int32)
    if world.size > 1:
        dist.all_reduce(bad, dist.ReduceOp.MAX)
    return not bad.item()
