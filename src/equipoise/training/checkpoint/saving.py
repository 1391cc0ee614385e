"""The checkpoints of one training: written at points of its loop, rescued when it fails, and resumed from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

from equipoise.training.checkpoint.folder import (
    has_settings,
    last_checkpoint,
    load_checkpoint,
    refuse,
    save_checkpoint,
    set_aside,
)
from equipoise.training.faults.folder_owner import own_folder
from equipoise.training.learner import Learner
from equipoise.training.record import TrainingRecord
from equipoise.training.reproducibility import check_random_state, random_states, restore_random_states
from equipoise.training.run import RUN, Run
from equipoise.training.state_checks import (
    UnexpectedStateError,
    expect_count,
    expect_equal,
    expect_keys,
    expect_list,
    expect_tensor,
    expect_valid,
)

__all__ = ["Checkpoints"]


class _PlainWindow(TypedDict):
    """The part of a window's state that is no tensor."""

    steps: NonNegativeInt
    seconds: FiniteFloat
    monitor: list[dict[str, int | float]]


_PLAIN_WINDOW: Final = TypeAdapter(_PlainWindow)


@dataclass
class Checkpoints:
    """Saves and restores one training in a folder.

    Attributes:
        folder: None if no checkpoints are to be written.
        identity: the settings that a checkpoint belongs to; one of other settings is refused.
        learner: saved and restored together with the record.
    """

    folder: Path | None
    identity: Mapping[str, str]
    learner: Learner
    _saved: int = field(default=0, init=False)
    _begun: int = field(default=0, init=False)

    def owned_folder(self) -> AbstractContextManager[None]:
        """Return the block in which no other process may write to the folder, see :func:`own_folder`."""
        return nullcontext() if self.folder is None else own_folder(self.folder, self.learner.world)

    def save(self, record: TrainingRecord) -> bool:
        """Write a checkpoint of the last step, unless there is one; return False if there is no folder.

        Raises:
            NonFiniteError: see :meth:`TrainingRecord.refuse_non_finite`; a checkpoint must be fit to resume from.
        """
        if self.folder is None:
            return False
        if record.steps != self._saved:
            record.refuse_non_finite()
            self._begun = record.steps
            content = {
                "learner": self.learner.state_dict(), "run": asdict(record.run),
                "non_finite": record.non_finite.state_dict(), "window": record.window.state_dict(),
                "stopping": {} if record.stopping is None else record.stopping.state_dict(),
                "rng": [self.learner.world.gather(state) for state in random_states(self.learner.device)],
            }  # fmt: skip
            save_checkpoint(self.folder, record.steps, self.identity, content, self.learner.sharded_state())
            self._saved = record.steps
        return True

    def begin(self, record: TrainingRecord, *, resume: bool) -> None:
        """Restore record and learner from the last checkpoint, or move older checkpoints away and start a new training.

        Ranks that torchrun has restarted resume without being told to, if the checkpoint has their settings.

        Raises:
            CheckpointError: there is no checkpoint, or it is not one of this training. The record, and but for sharded
                tables the learner, are as they were.
        """
        if self.folder is None:
            return
        if not resume and not (self.learner.world.restarted and has_settings(self.folder, self.identity)):
            set_aside(self.folder)
            return
        state = load_checkpoint(self.folder, self.identity, self.learner.sharded_state())
        try:
            run = self._check(self.folder, record, state)
            self.learner.load_state_dict(state["learner"])
        except UnexpectedStateError as error:
            raise refuse(self.folder, f"{error}") from error
        self._restore(record, run, state)
        self._saved = record.steps

    def _check(self, folder: Path, record: TrainingRecord, state: Mapping[str, Any]) -> Run:
        """Check every part but the learner's, and return the run."""
        expect_keys(state, {"learner", "run", "non_finite", "window", "stopping", "rng"}, "its state")
        expect_keys(state["run"], {entry.name for entry in fields(Run)}, "run")
        run = expect_valid(RUN, state["run"], "run")
        for name in ("method", "seed", "lr"):
            expect_equal(getattr(run, name), getattr(record.run, name), f"run/{name}")

        window = expect_keys(state["window"], {"sums", "steps", "seconds", "monitor"}, "window")
        plain = expect_valid(_PLAIN_WINDOW, {name: window[name] for name in window if name != "sums"}, "window")
        sums = expect_list(window["sums"], "window/sums")
        for rank, found in enumerate(sums):
            expect_tensor(found, torch.stack([record.window.loss_sum, record.window.counted]), f"window/sums/{rank}")
        path = last_checkpoint(folder)
        steps = run.steps + plain["steps"]
        expect_equal(f"step-{steps}", path.name if path else "", "run/steps + window/steps")
        expect_equal(
            expect_keys(state["learner"], self.learner.state_dict(), "learner")["steps"], steps, "learner/steps"
        )

        self._check_stopping(record, state["stopping"])
        non_finite = record.non_finite.state_dict()
        for name, found in expect_keys(state["non_finite"], non_finite.keys(), "non_finite").items():
            expect_tensor(found, non_finite[name], f"non_finite/{name}")

        devices = [torch.device("cpu"), self.learner.device]
        generators = list(zip(devices, random_states(self.learner.device), strict=False))
        # A checkpoint of another kind of device may hold fewer generators, or more.
        for place, ((device, own), of_ranks) in enumerate(
            zip(generators, expect_list(state["rng"], "rng"), strict=False)
        ):
            for rank, found in enumerate(expect_list(of_ranks, f"rng/{place}", length=len(sums))):
                expect_tensor(found, own, f"rng/{place}/{rank}")
                try:
                    check_random_state(found, device)
                except RuntimeError as error:
                    raise UnexpectedStateError(f"rng/{place}/{rank}", "the state of a generator", found) from error
        return run

    def _check_stopping(self, record: TrainingRecord, found: object) -> None:
        own = {} if record.stopping is None else record.stopping.state_dict()
        stopping = expect_keys(found, own.keys(), "stopping")
        if not own:
            return
        if type(stopping["best"]) is not float or not math.isfinite(stopping["best"]):
            raise UnexpectedStateError("stopping/best", "a finite number", stopping["best"])
        expect_count(stopping["since"], "stopping/since")
        if expect_count(stopping["best_step"], "stopping/best_step"):
            self.learner.check_weights(stopping["weights"], "stopping/weights")
        else:
            expect_equal(stopping["weights"], [], "stopping/weights")

    def _restore(self, record: TrainingRecord, run: Run, state: Mapping[str, Any]) -> None:
        world, device = self.learner.world, self.learner.device
        record.run = run
        record.non_finite.load_state_dict(state["non_finite"])
        record.window.load_state_dict(state["window"])
        if record.stopping is not None:
            record.stopping.load_state_dict(state["stopping"])
        if all(world.rank < len(of_ranks) for of_ranks in state["rng"]):  # else it keeps the random state that it has
            restore_random_states([of_ranks[world.rank] for of_ranks in state["rng"]], device)

    def rescue(self, record: TrainingRecord, error: BaseException) -> None:
        """Write a checkpoint of the last whole step after ``error`` has ended a step or an evaluation, if possible.

        The unfinished step is taken back; a note on ``error`` says so. It is not possible with several ranks, which
        would have to write the checkpoint together, nor once parameters have begun to move.
        """
        step = record.steps
        if self.folder is None or not step or not self.learner.take_back() or step != self.learner.steps:
            return
        if self._saved != step == self._begun:  # writing this very checkpoint has failed, as ``error`` says
            return
        try:
            self.save(record)
        except (OSError, RuntimeError, MemoryError) as second:
            error.add_note(f"No checkpoint of step {step} could be written: {second}.")
        else:
            error.add_note(f"A checkpoint holds step {step}, the last whole one.")
