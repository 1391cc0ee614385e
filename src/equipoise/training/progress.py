"""How far a training is: the record so far, what has happened since its last entry, and the checkpoints of both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.monitor import Reading
from equipoise.settings import NonFinite
from equipoise.training.checkpoint.folder import CheckpointError, belongs, load_checkpoint, put_aside, save_checkpoint
from equipoise.training.faults.non_finite import NonFiniteError, NonFiniteLosses
from equipoise.training.learner import Learner
from equipoise.training.ranks.world import World
from equipoise.training.reproducibility import random_states, restore_random_states
from equipoise.training.run import Run

__all__ = ["REMEDY", "Progress", "Saving", "Window"]

REMEDY: Final = (
    "lower the learning rate, look at the data of that step, or leave out the task or the step (non_finite skip-task, "
    "skip-step), which a training that goes on from a checkpoint can do too."
)


class Window:
    """What happened since the last evaluation point, still on the device."""

    def __init__(self, world: World, tasks: int) -> None:
        self.world = world
        self.loss_sum = torch.zeros(tasks, device=world.device)
        self.counted = torch.zeros_like(self.loss_sum)
        self.steps = 0
        self.readings: list[tuple[int, Reading]] = []
        self.monitor: list[dict[str, float]] = []
        self.started = time.perf_counter()

    def add(self, losses: Tensor) -> None:
        """One more step's losses, NaN for those to leave out."""
        finite = losses.isfinite()
        self.loss_sum += torch.where(finite, losses, 0.0)
        self.counted += finite
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from: the sums of every rank."""
        self._read()
        sums = torch.stack([self.loss_sum, self.counted])
        of_ranks = self.world.gather(sums)
        seconds = time.perf_counter() - self.started
        return {"sums": of_ranks, "steps": self.steps, "seconds": seconds, "monitor": list(self.monitor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Every rank goes on with its sums, or the first with those of all where there were more or fewer."""
        of_ranks: list[Tensor] = state["sums"]
        if len(of_ranks) == self.world.size:
            self.loss_sum, self.counted = of_ranks[self.world.rank].to(self.world.device).unbind()
        elif self.world.rank == 0:
            self.loss_sum, self.counted = torch.stack(of_ranks).sum(0).to(self.world.device).unbind()
        self.steps = state["steps"]
        self.monitor = list(state["monitor"])
        self.started -= state["seconds"]

    def close(self, run: Run) -> list[float]:
        """Bring time, steps and readings into the run; the means of the finite losses."""
        if self.world.size > 1:
            dist.all_reduce(self.loss_sum)
            dist.all_reduce(self.counted)
        losses: list[float] = (self.loss_sum / self.counted).tolist()  # waits for the device
        self._read()
        run.seconds += time.perf_counter() - self.started
        run.steps += self.steps
        run.monitor += self.monitor
        return losses

    def _read(self) -> None:
        self.monitor += [{"step": step, **reading.scalars()} for step, reading in self.readings]
        self.readings = []


@dataclass
class Progress:
    """The record up to the last evaluation point, and what has happened since.

    Attributes:
        policy: what a loss that is not finite leads to.
    """

    run: Run
    watch: NonFiniteLosses
    window: Window
    policy: NonFinite

    @property
    def steps(self) -> int:
        """Steps made."""
        return self.run.steps + self.window.steps

    def add(self, step: int, losses: Tensor) -> None:
        """One more step, counted from one."""
        self.watch.see(losses, step)
        self.window.add(losses)

    def close(self, learner: Learner) -> list[float]:
        """Bring what has happened into the record and begin anew; the mean losses."""
        losses = self.window.close(self.run)
        for task, (steps, _) in self.watch.read().items():
            self.run.non_finite[task] = self.run.non_finite.get(task, 0) + steps
        self.run.skipped_steps += learner.skipped_steps
        learner.skipped_steps = 0
        self.watch = NonFiniteLosses(self.watch.world, self.watch.tasks)
        self.window = Window(self.window.world, len(losses))
        return losses

    def refuse_non_finite(self) -> None:
        """End a run whose losses have ceased to be finite.

        Raises:
            NonFiniteError: under "raise", with the tasks and the step in which each was first.
        """
        if self.policy != "raise" or not (found := self.watch.read()):
            return
        self.window.close(self.run)
        self.run.non_finite = {task: steps for task, (steps, _) in found.items()}
        self.run.status = "diverged"
        first = ", ".join(f"{task} in step {step}" for task, (_, step) in found.items())
        raise NonFiniteError(f"The loss or its gradient is not finite, first of {first}: {REMEDY}", self.run)


@dataclass
class Saving:
    """Where checkpoints go, and whose they are.

    Attributes:
        folder: None where none are to be written.
        identity: the settings that a checkpoint belongs to.
        learner: what is saved with the progress.
    """

    folder: Path | None
    identity: Mapping[str, str]
    learner: Learner
    _saved: int = field(default=0, init=False)
    _begun: int = field(default=0, init=False)

    def save(self, progress: Progress) -> bool:
        """Write a checkpoint of the last step, unless there is one of it; False if there is no folder to write to.

        Raises:
            NonFiniteError: see :meth:`Progress.refuse_non_finite`: what is saved can be gone on from.
        """
        if self.folder is None:
            return False
        if progress.steps != self._saved:
            progress.refuse_non_finite()
            self._begun = progress.steps
            content = {
                "learner": self.learner.state_dict(), "run": asdict(progress.run),
                "watch": progress.watch.state_dict(), "window": progress.window.state_dict(),
                "rng": [self.learner.world.gather(state) for state in random_states(self.learner.device)],
            }  # fmt: skip
            save_checkpoint(self.folder, progress.steps, self.identity, content, self.learner.sharded_state())
            self._saved = progress.steps
        return True

    def begin(self, progress: Progress, *, resume: bool) -> Progress:
        """Back to the last checkpoint, the learner too, or from the start with an empty folder.

        Ranks that torchrun has started anew go on without being told. What an earlier training has left there under the
        same settings does as well, since it leads to the same result.

        Raises:
            CheckpointError: there is none, or it is not one of this training.
        """
        if self.folder is None:
            return progress
        if not resume and not (self.learner.world.restarted and belongs(self.folder, self.identity)):
            put_aside(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)  # that it cannot be shows now, not after some hours
            return progress
        state = load_checkpoint(self.folder, self.identity, self.learner.sharded_state())
        try:
            loaded = self._restore(progress, state)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The last checkpoint in {self.folder} holds something else than this version of equipoise expects "
                f"({type(error).__name__}: {f'{error}'.partition(chr(10))[0]}): go on with the version that wrote it, "
                "or begin anew without resume."
            ) from error
        self._saved = loaded.steps
        return loaded

    def _restore(self, progress: Progress, state: Mapping[str, Any]) -> Progress:
        world, device = self.learner.world, self.learner.device
        self.learner.load_state_dict(state["learner"])
        progress.watch.load_state_dict(state["watch"])
        progress.window.load_state_dict(state["window"])
        if all(world.rank < len(of_ranks) for of_ranks in state["rng"]):  # else it keeps the random state that it has
            restore_random_states([of_ranks[world.rank] for of_ranks in state["rng"]], device)
        return Progress(Run(**state["run"]), progress.watch, progress.window, progress.policy)

    def rescue(self, progress: Progress, error: BaseException) -> None:
        """Keep what was done before ``error`` ended the training within a step or an evaluation, if that can be.

        The step under way is taken back and a checkpoint of the one before is written; a note on ``error`` says so.
        That cannot be with several ranks, which would have to write it together, nor once parameters begin to move.
        """
        step = progress.steps
        if self.folder is None or not step or not self.learner.take_back() or step != self.learner.steps:
            return
        if self._saved != step == self._begun:  # it is this checkpoint's writing that has failed, which ``error`` says
            return
        try:
            self.save(progress)
        except (OSError, RuntimeError, MemoryError) as second:
            error.add_note(f"No checkpoint of step {step} could be written: {second}.")
        else:
            error.add_note(f"A checkpoint holds step {step}, the last whole one.")
