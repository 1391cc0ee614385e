"""A training that is told to end, as a pre-empted machine is: after the step under way, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "StoppedError", "listening"]


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
    """Whether somebody has asked for the end."""

    def __init__(self) -> None:
        self.made = False

    def __call__(self) -> bool:
        """Asked after every step."""
        return self.made


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Within the block SIGTERM makes the request, instead of ending the process at once."""
    request = StopRequest()

    def make(_: int, __: FrameType | None) -> None:
        request.made = True

    before = signal.signal(signal.SIGTERM, make)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
