"""Requests to end a training early, such as SIGTERM: it ends after the step under way, with a checkpoint."""

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

__all__ = ["StopPoll", "StopRequest", "StoppedError", "TerminatedError", "interrupted_by_sigterm", "listening"]

_SECONDS: Final = 1.0  # between two polls of all ranks, in which they wait for the device and for each other


class StoppedError(Exception):
    """Training has ended early because it was told to.

    Attributes:
        step: the last step that was made.
        saved: whether there is a checkpoint of it.
    """

    def __init__(self, step: int, saved: bool) -> None:
        super().__init__(f"Stopped after step {step}" + (", which a checkpoint holds." if saved else "."))
        self.step = step
        self.saved = saved


class StopRequest:
    """A request to end the training, which the training polls.

    Attributes:
        made: the request was made.
        polled: the training has polled it at least once.
    """

    def __init__(self) -> None:
        self.made = self.polled = False

    def __call__(self) -> bool:
        """Return whether the request was made."""
        self.polled = True
        return self.made


class StopPoll:
    """Polls the ranks of a training for a request to end it: a single process after each step, several once a second.

    Args:
        requested: returns whether this process was told to end; None if it never is.
        world: the ranks, all of which must poll after every step.
    """

    def __init__(self, requested: Callable[[], bool] | None, world: World) -> None:
        self._requested = requested
        self._world = world
        self._last_step, self._last_time = 0, time.monotonic()
        self._interval = 1  # steps

    def should_stop(self, step: int) -> bool:
        """Return whether to end after this step; the same on all ranks."""
        if self._requested is None or self._world.size == 1:
            return self._requested is not None and self._requested()
        if step < self._last_step + self._interval:
            return False
        seconds = time.monotonic() - self._last_time
        found = torch.tensor([float(self._requested()), seconds], dtype=torch.float64, device=self._world.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        requested, slowest = found.tolist()
        # At most twice the interval before: the first steps may take much longer than those to come.
        steps_per_poll = int(_SECONDS * (step - self._last_step) / max(slowest, 1e-6))
        self._last_step, self._last_time = step, time.monotonic()
        self._interval = min(max(1, steps_per_poll), 2 * self._interval)
        return bool(requested)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, raised where it is treated as Ctrl-C."""


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Treat the first SIGTERM within the block as Ctrl-C; a second one ends the process at once.

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
    """Turn SIGTERM within the block into a request, which a training polls after each step.

    Before the first poll there is nothing to keep, so SIGTERM ends the block. A process that torchrun has started is
    ended at once then, since other ranks may be waiting for it.

    Raises:
        TerminatedError: on SIGTERM before the first poll, in a process that trains alone.
    """
    request = StopRequest()

    def make_request(number: int, _: FrameType | None) -> None:
        request.made = True
        if not request.polled:
            signal.signal(number, signal.SIG_DFL)
            if "TORCHELASTIC_RUN_ID" not in os.environ:
                raise TerminatedError
            signal.raise_signal(number)

    with _on_sigterm(make_request):
        yield request


@contextmanager
def _on_sigterm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
