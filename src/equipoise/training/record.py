"""The record of a training: the run up to the last evaluation, and later losses, which stay on the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.monitor import Reading
from equipoise.settings import NonFinite
from equipoise.training.early_stopping import EarlyStopping
from equipoise.training.faults.non_finite import NonFiniteError, NonFiniteLosses
from equipoise.training.learner import Learner
from equipoise.training.ranks.world import World
from equipoise.training.run import Run

__all__ = ["NON_FINITE_REMEDY", "TrainingRecord", "Window"]

NON_FINITE_REMEDY: Final = (
    "lower the learning rate, look at the data of that step, or leave out the task or the step (non_finite skip-task, "
    "skip-step), which a training that resumes from a checkpoint can do too."
)


class Window:
    """Losses, readings and time since the last evaluation; losses and readings are on the device.

    Args:
        tasks: the number of tasks.
    """

    def __init__(self, world: World, tasks: int) -> None:
        self.world = world
        self.loss_sum = torch.zeros(tasks, device=world.device)
        self.counted = torch.zeros_like(self.loss_sum)
        self.steps = 0
        self.readings: list[tuple[int, Reading]] = []
        self.monitor: list[dict[str, int | float]] = []
        self.started = time.perf_counter()

    def add(self, losses: Tensor) -> None:
        """Add the losses of a step, shape [M]; those that are not finite are left out."""
        finite = losses.isfinite()
        self.loss_sum += torch.where(finite, losses, 0.0)
        self.counted += finite
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed training, with the sums of each rank. All ranks must call this."""
        self._read_monitor()
        sums = torch.stack([self.loss_sum, self.counted])
        of_ranks = self.world.gather(sums)
        seconds = time.perf_counter() - self.started
        return {"sums": of_ranks, "steps": self.steps, "seconds": seconds, "monitor": list(self.monitor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that :meth:`state_dict` gave, of any number of ranks.

        If that number has changed, the first rank takes over the sums of all.
        """
        of_ranks: list[Tensor] = state["sums"]
        if len(of_ranks) == self.world.size:
            self.loss_sum, self.counted = of_ranks[self.world.rank].to(self.world.device).unbind()
        elif self.world.rank == 0:
            self.loss_sum, self.counted = torch.stack(of_ranks).sum(0).to(self.world.device).unbind()
        self.steps = state["steps"]
        self.monitor = list(state["monitor"])
        self.started -= state["seconds"]

    def close(self, run: Run) -> list[float]:
        """Add time, steps and readings to the run, and return the mean of each task's finite losses."""
        if self.world.size > 1:
            dist.all_reduce(self.loss_sum)
            dist.all_reduce(self.counted)
        losses: list[float] = (self.loss_sum / self.counted).tolist()  # waits for the device
        self._read_monitor()
        run.seconds += time.perf_counter() - self.started
        run.steps += self.steps
        run.monitor += self.monitor
        return losses

    def _read_monitor(self) -> None:
        self.monitor += [{"step": step, **reading.scalars()} for step, reading in self.readings]
        self.readings = []


@dataclass
class TrainingRecord:
    """The run up to the last evaluation, and the losses and readings since.

    Attributes:
        policy: what to do about a loss that is not finite.
        stopping: follows the metric that ends the training early; None without one.
    """

    run: Run
    non_finite: NonFiniteLosses
    window: Window
    policy: NonFinite
    stopping: EarlyStopping | None = None

    @property
    def steps(self) -> int:
        """The number of steps made."""
        return self.run.steps + self.window.steps

    def add(self, step: int, losses: Tensor) -> None:
        """Add the losses of a step, which is counted from one."""
        self.non_finite.add(losses, step)
        self.window.add(losses)

    @property
    def is_over(self) -> bool:
        """True if the training should end early."""
        return self.stopping is not None and self.stopping.over

    def note_evaluation(self, metrics: Mapping[str, Mapping[str, float]], learner: Learner) -> None:
        """Keep the weights if this evaluation, after the last step, is the best so far."""
        if self.stopping is not None and self.stopping.is_better(self.steps, metrics):
            self.stopping.weights = learner.weights()
            self.run.best_step = self.steps

    def settle(self, learner: Learner) -> None:
        """Give the learner the weights to measure and to keep: those of the best evaluation, or the averaged ones."""
        if self.stopping is not None:
            learner.set_weights(self.stopping.weights)
        else:
            learner.use_averages()

    def close_window(self, learner: Learner) -> list[float]:
        """Move what happened since the last evaluation into the run, and return the mean losses."""
        losses = self.window.close(self.run)
        for task, (steps, _) in self.non_finite.read().items():
            self.run.non_finite[task] = self.run.non_finite.get(task, 0) + steps
        self.run.skipped_steps += learner.skipped_steps
        learner.skipped_steps = 0
        self.non_finite = NonFiniteLosses(self.non_finite.world, self.non_finite.tasks)
        self.window = Window(self.window.world, len(losses))
        return losses

    def refuse_non_finite(self) -> None:
        """End the run if a loss was not finite, under the policy "raise". Waits for the device.

        Raises:
            NonFiniteError: with the tasks, and the step in which each was first not finite.
        """
        if self.policy != "raise" or not (found := self.non_finite.read()):
            return
        self.window.close(self.run)
        self.run.non_finite = {task: steps for task, (steps, _) in found.items()}
        self.run.status = "diverged"
        first = ", ".join(f"{task} in step {step}" for task, (_, step) in found.items())
        raise NonFiniteError(f"The loss or its gradient is not finite, first of {first}: {NON_FINITE_REMEDY}", self.run)
