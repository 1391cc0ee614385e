"""A training that is told to end, as a pre-empted machine is: after the step under way, with a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import torch
import torch.distributed as dist

from equipoise.training.ranks.world import World

__all__ = ["StopRequest", "StoppedError", "Stopping", "TerminatedError", "interrupted_by_sigterm", "listening"]

_SECONDS: Final = 1.0  # between two questions to all ranks, which wait for the device and for each other


class StoppedError(Exception):
    """Training has ended early because it was asked to.

    Attributes:
        step: the last step that was made.
        saved: whether there is a checkpoint of it.
    """

    def __init__(self, step: int, saved: bool) -> None:
        super().__init__(f"Stopped after step {step}" + (", which a checkpoint holds." if saved else "."))
        self.step = step
        self.saved = saved


class StopRequest:
    """Whether somebody has asked for the end.

    Attributes:
        heeded: whether anybody looks: from the first call on.
    """

    def __init__(self) -> None:
        self.made = self.heeded = False

    def __call__(self) -> bool:
        """Asked after every step."""
        self.heeded = True
        return self.made


class Stopping:
    """Asks a training's ranks whether one of them has been told to end: each step of a single process, else by time.

    Args:
        told: whether this process has been told; None: nobody ever is.
        world: the ranks, which must all ask after every step.
    """

    def __init__(self, told: Callable[[], bool] | None, world: World) -> None:
        self._told = told
        self._world = world
        self._asked, self._moment = 0, time.monotonic()
        self._apart = 1

    def asked(self, step: int) -> bool:
        """Whether to end after this step; all ranks get the same answer."""
        if self._told is None or self._world.size == 1:
            return self._told is not None and self._told()
        if step < self._asked + self._apart:
            return False
        seconds = time.monotonic() - self._moment
        found = torch.tensor([float(self._told()), seconds], dtype=torch.float64, device=self._world.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        told, slowest = found.tolist()
        # Twice as far at most: what the first steps took may say little of those to come.
        fitting = int(_SECONDS * (step - self._asked) / max(slowest, 1e-6))
        self._asked, self._moment = step, time.monotonic()
        self._apart = min(max(1, fitting), 2 * self._apart)
        return bool(told)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, where it is taken like Ctrl-C."""


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within the block the first SIGTERM ends it as Ctrl-C does; a second one ends the process at once.

    Raises:
        TerminatedError: on SIGTERM.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise TerminatedError

    with _on_sigterm(interrupt):
        yield


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Within the block SIGTERM makes the request, instead of ending the process at once.

    Until the request is looked at for the first time, when there is nothing to keep yet, it does end the process: one
    of several that torchrun has started at once, since others may wait for it.

    Raises:
        TerminatedError: on SIGTERM before that, in a process that trains alone.
    """
    request = StopRequest()

    def make(number: int, _: FrameType | None) -> None:
        request.made = True
        if not request.heeded:
            signal.signal(number, signal.SIG_DFL)
            if "TORCHELASTIC_RUN_ID" not in os.environ:
                raise TerminatedError
            signal.raise_signal(number)

    with _on_sigterm(make):
        yield request


@contextmanager
def _on_sigterm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
