"""An estimate of how long a comparison will still take, from the runs so far."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from equipoise.comparison.jobs import Job

__all__ = ["TimeLeft", "in_words"]


class TimeLeft:
    """Estimates the wall-clock time of the runs that are left.

    A method's runs take as long as those it has finished; a method that has finished none takes as long as its run in
    progress promises, else as long as the mean of the others.

    Args:
        runs: method to the number of runs that are left.
        workers: how many of them are made at once.
        clock: the time in seconds.

    Example:
        >>> now = iter([0.0, 10.0])
        >>> left = TimeLeft({"equal": 5}, workers=2, clock=lambda: next(now))
        >>> job = Job("equal", 0, 1e-3)
        >>> left.step(job, 0, 100)
        >>> left.finish(job)
        >>> left.seconds()
        20.0
    """

    def __init__(self, runs: Mapping[str, int], *, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._left = Counter(runs)
        self._workers = max(1, workers)
        self._clock = clock
        self._took: dict[str, list[float]] = {}
        self._begun: dict[Job, tuple[float, float]] = {}  # when a run was first heard of, and its share of steps then
        self._now: dict[Job, tuple[float, float]] = {}  # the same of the last time

    def step(self, job: Job, done: int, total: int, /) -> None:
        """Note how far a run is."""
        self._now[job] = (self._clock(), done / total)
        self._begun.setdefault(job, self._now[job])

    def finish(self, job: Job, /) -> None:
        """Note that a run is done."""
        self._left[job.method] -= 1
        self._now.pop(job, None)
        began, share = self._begun.pop(job, (0.0, 1.0))
        if share < 1:
            self._took.setdefault(job.method, []).append((self._clock() - began) / (1 - share))

    def leave_out(self, job: Job, /) -> None:
        """Note that a run was done before."""
        self._left[job.method] -= 1

    def seconds(self) -> float | None:
        """Return the seconds that are left; None before anything can be said."""
        known = {method: _mean(took) for method, took in self._took.items()}
        for job, (now, share) in self._now.items():
            began, before = self._begun[job]
            if job.method not in known and share - before >= _ENOUGH:
                known[job.method] = (now - began) / (share - before)
        if not known:
            return None
        usual = _mean(known.values())
        work = sum(count * known.get(method, usual) for method, count in self._left.items())
        done = sum(share * known.get(job.method, usual) for job, (_, share) in self._now.items())
        runs = sum(self._left.values())
        return max(0.0, work - done) / min(self._workers, runs) if runs else 0.0


def in_words(seconds: float, /) -> str:
    """Return a time as people say it.

    Example:
        >>> in_words(42), in_words(100), in_words(4000)
        ('under a minute', 'about 2 minutes', 'about 1 h 7 min')
    """
    minutes = max(1, round(seconds / 60))
    if seconds < _MINUTE:
        return "under a minute"
    if minutes < _HOUR:
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {minutes // _HOUR} h {minutes % _HOUR} min"


_ENOUGH = 0.1  # the share of a run's steps from which its pace is trusted
_MINUTE, _HOUR = 60, 60


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
