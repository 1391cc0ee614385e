"""What happens when a loss or a gradient is not finite: who, when, how often, and whether training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from equipoise.training.world import World

if TYPE_CHECKING:
    from equipoise.training.run import Run

__all__ = ["NonFinite", "NonFiniteError", "NonFiniteLosses", "all_finite", "finite_losses", "watch"]

NonFinite = Literal["raise", "skip-task", "skip-step"]
"""raise: end with an error; skip-task: the task has no part in that step; skip-step: nothing moves in that step."""


class NonFiniteError(RuntimeError):
    """A loss, or a prediction, was not finite: the message names the tasks and the step.

    Attributes:
        run: the record up to there, with the status "diverged".
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


class NonFiniteLosses:
    """Counts the steps in which a task's loss is not finite (or NaN because its gradient is not), on the device."""

    def __init__(self, world: World, tasks: Sequence[str]) -> None:
        self.world = world
        self.tasks = tasks
        self._steps = torch.zeros(len(tasks), dtype=torch.int64, device=world.device)
        self._first = torch.zeros_like(self._steps)

    def see(self, losses: Tensor, step: int) -> None:
        """The losses of a step, shape [M]."""
        bad = losses.isfinite().logical_not_()
        self._first += torch.where(bad & (self._steps == 0), step, 0)
        self._steps += bad

    def state_dict(self) -> dict[str, Tensor]:
        """The counts so far; of several ranks the highest."""
        found = torch.stack([self._steps, self._first])
        if self.world.size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return {"steps": found[0].cpu(), "first": found[1].cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on counting from there."""
        self._steps, self._first = state["steps"].to(self.world.device), state["first"].to(self.world.device)

    def read(self) -> dict[str, tuple[int, int]]:
        """Task -> in how many steps, and the first of them; of all ranks, which must all ask. Waits for the device."""
        found = self.state_dict()
        steps, first = found["steps"].tolist(), found["first"].tolist()
        return {task: (steps[m], first[m]) for m, task in enumerate(self.tasks) if steps[m]}


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


def all_finite(parameters: Sequence[Parameter], losses: Sequence[Tensor], world: World) -> bool:
    """Whether all losses and gradients of all ranks are finite; waits for the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    values = [loss.detach() for loss in losses] + [(g._values() if g.is_sparse else g).sum() for g in gradients]
    local = [value.to_local() if hasattr(value, "to_local") else value for value in values]
    bad = torch.stack([value.isfinite().logical_not() for value in local]).any().to(torch.int32)
    if world.size > 1:
        dist.all_reduce(bad, dist.ReduceOp.MAX)
    return not bad.item()
