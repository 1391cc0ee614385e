"""The time that is left follows from the runs so far, their methods and the workers."""

import pytest

from equipoise.comparison.jobs import Job
from equipoise.comparison.time_left import TimeLeft, in_words


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ran(left: TimeLeft, clock: Clock, method: str, seconds: float) -> None:
    """Make one run from its first step to its end."""
    job = Job(method, round(clock.now), 1e-3)
    left.step(job, 0, 100)
    clock.now += seconds
    left.step(job, 100, 100)
    left.finish(job)


def test_nothing_is_said_before_a_run_has_made_a_tenth_of_its_steps() -> None:
    clock = Clock()
    left = TimeLeft({"equal": 3}, workers=1, clock=clock)
    assert left.seconds() is None
    job = Job("equal", 0, 1e-3)
    left.step(job, 1, 100)
    clock.now = 5.0
    left.step(job, 6, 100)
    assert left.seconds() is None
    clock.now = 10.0
    left.step(job, 11, 100)
    assert left.seconds() == pytest.approx(289.0)  # 100 s a run: three of them, less 11 steps


def test_each_method_takes_its_own_time_and_an_unknown_one_the_mean() -> None:
    clock = Clock()
    left = TimeLeft({"equal": 2, "pub": 3, "clippy": 1}, workers=1, clock=clock)
    ran(left, clock, "equal", 10)
    ran(left, clock, "pub", 30)
    assert left.seconds() == pytest.approx(10 + 2 * 30 + 20)


def test_workers_share_the_runs_but_not_one_run() -> None:
    clock = Clock()
    left = TimeLeft({"equal": 5}, workers=2, clock=clock)
    ran(left, clock, "equal", 10)
    assert left.seconds() == pytest.approx(20.0)
    for _ in range(3):
        ran(left, clock, "equal", 10)
    assert left.seconds() == pytest.approx(10.0)
    ran(left, clock, "equal", 10)
    assert left.seconds() == 0.0


def test_runs_that_report_their_last_step_alone_change_nothing() -> None:
    clock = Clock()
    left = TimeLeft({"equal": 2}, workers=1, clock=clock)
    job = Job("equal", 0, 1e-3)
    left.step(job, 5, 5)
    left.finish(job)
    assert left.seconds() is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "under a minute"), (59.9, "under a minute"), (60, "about 1 minute"), (200, "about 3 minutes"),
     (3599, "about 1 h 0 min"), (7300, "about 2 h 2 min")],
)  # fmt: skip
def test_times_are_said_as_people_do(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
