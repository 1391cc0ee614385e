"""Progress of a comparison in a log, where there is no terminal to draw bars on."""

import io
import math

from rich.console import Console

from equipoise.cli.progress_bars import Display
from equipoise.comparison.jobs import Job
from equipoise.training import Run

JOB = Job("multibalance", 3, 0.03, 0.3)


def logged(run: Run, seconds_left: float | None) -> str:
    output = io.StringIO()
    with Display(Console(file=output, width=40)) as display:
        display.phase_started("Training", 2)
        display.steps_done(JOB, 1, 100, None)
        display.run_done(JOB, run, seconds_left)
    return output.getvalue()


def run(ne: float, status: str = "ok") -> Run:
    return Run(JOB.method, JOB.seed, JOB.lr, JOB.table_decay, status, seconds=12.3, validation={"click": {"ne": ne}})


def test_a_line_for_each_run_says_how_long_the_rest_will_take() -> None:
    title, said = logged(run(0.7), 250.0).rstrip("\n").split("\n")  # rich 13.0 ends with an empty line
    assert title == "Training"
    assert said == "multibalance, seed 3, rate 0.03, decay 0.3: mean validation NE 0.7000, 12 s; about 4 minutes left"


def test_nothing_is_said_of_the_time_before_it_can_be_told() -> None:
    assert "left" not in logged(run(0.7), None)


def test_an_undefined_ne_is_not_called_diverged_and_is_no_number() -> None:
    said = logged(run(math.nan), None)
    assert "validation NE not defined" in said
    assert "nan" not in said
    assert "diverged" not in said


def test_a_run_that_diverged_is_called_that() -> None:
    assert "diverged at step 0" in logged(run(math.nan, "diverged"), None)
