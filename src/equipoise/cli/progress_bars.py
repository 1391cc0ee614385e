"""Progress bars for the terminal."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from equipoise.comparison.jobs import Job, RunListener
from equipoise.comparison.time_left import in_words
from equipoise.training import Run

__all__ = ["DataBar", "Display"]

_NAME_WIDTH = 30


class _Bars:
    """Shows bars on a terminal while a block runs; nothing in a log."""

    def __init__(self, console: Console, count: ProgressColumn) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), count,
            TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._progress.stop()


class Display(_Bars, RunListener):
    """Shows a bar for the phase and one for each run in progress while a block runs; lines in a log."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, MofNCompleteColumn())
        self._title = ""
        self._phase: TaskID | None = None
        self._bars: dict[Job, TaskID] = {}

    def noted(self, sentence: str, /) -> None:
        """Print the sentence."""
        self._progress.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def phase_started(self, title: str, parts: int, done: int = 0, /) -> None:
        """Show a bar for the phase, in place of the one before; a line in a log."""
        console = self._progress.console
        if not console.is_terminal and done < parts > 1:
            console.print(title, markup=False, highlight=False, soft_wrap=True)
        if self._phase is not None:
            self._progress.remove_task(self._phase)
        self._title = title
        self._phase = self._progress.add_task(f"[bold]{title}", total=parts, completed=done)

    def part_done(self) -> None:
        """Move the bar of the phase by one part."""
        if self._phase is not None:
            self._progress.advance(self._phase)

    def steps_done(self, job: Job, done: int, total: int, seconds_left: float | None, /) -> None:
        """Move a run's bar, which appears with its first step."""
        if job not in self._bars:
            name = job.method if len(job.method) <= _NAME_WIDTH else f"{job.method[: _NAME_WIDTH - 1]}…"
            self._bars[job] = self._progress.add_task(f"{name} {job.rate} #{job.seed}", total=total)
        self._progress.update(self._bars[job], completed=done)
        self._show_time_left(seconds_left)

    def run_done(self, job: Job, run: Run, seconds_left: float | None, /) -> None:
        """Take a run's bar away; say so if the run diverged."""
        if job in self._bars:
            self._progress.remove_task(self._bars.pop(job))
        console = self._progress.console
        name = f"{job.method}, seed {job.seed}, rate {job.rate}"
        left = "" if seconds_left is None else f"; {in_words(seconds_left)} left"
        if run.status == "diverged":
            console.print(f"{name}: diverged at step {run.steps}", style="yellow", soft_wrap=True)
        elif not console.is_terminal:  # a log shows lines instead of bars
            console.print(f"{name}: {_validation_ne(run)}, {run.seconds:.0f} s{left}", highlight=False, soft_wrap=True)
        self.part_done()
        self._show_time_left(seconds_left)

    def _show_time_left(self, seconds_left: float | None) -> None:
        if self._phase is not None and seconds_left is not None:
            self._progress.update(self._phase, description=f"[bold]{self._title}[/], {in_words(seconds_left)} left")


def _validation_ne(run: Run) -> str:
    mean = run.mean_validation_ne
    return f"mean validation NE {mean:.4f}" if math.isfinite(mean) else "validation NE not defined"


class DataBar(_Bars):
    """Shows a bar for a data set that is being built, while a block runs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, TaskProgressColumn())
        self._bar = self._progress.add_task("", total=1.0)

    def advance(self, step: str, done: float, /) -> None:
        """Show the next stage and the share of the work that is done."""
        self._progress.update(self._bar, description=step, completed=done)
