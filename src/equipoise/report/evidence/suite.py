"""A suite of comparisons as its folder holds it: settings in order, each with its results and their analysis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from equipoise.comparison.result_folder import FolderError, ResultFolder
from equipoise.comparison.results import EQUAL_WEIGHTS, Results
from equipoise.comparison.suite import SUITE_FILE, SuiteSetting
from equipoise.report.analysis import Analysis, analyse
from equipoise.report.diverged import with_diverged_counted
from equipoise.report.statistics import Array, Interval, gain_over_seeds_and_users
from equipoise.training import Run

__all__ = ["Setting", "Suite", "read_suite"]


class _SuiteFile(BaseModel):
    title: str
    settings: list[SuiteSetting] = Field(min_length=1)


@dataclass(frozen=True, eq=False)
class Setting:
    """One comparison of a suite.

    Attributes:
        name: the name of its folder.
        title: its name for readers.
        note: a sentence about it; may be empty.
        results: what its folder holds.
        analysis: the numbers of its test rows as sampled.
    """

    name: str
    title: str
    note: str
    results: Results
    analysis: Analysis

    @property
    def finished(self) -> bool:
        """True if every planned run is in."""
        return len(self.results.runs) == self.results.planned

    @property
    def has_gains(self) -> bool:
        """True if methods can be ranked, and equal weights and another joint method have results."""
        with_results = [entry for entry in self.analysis.joint if entry.ne is not None]
        return self.analysis.ranks and len(with_results) > 1 and any(entry.is_reference for entry in with_results)

    def positives(self, task: str) -> int | None:
        """Return the number of positive test rows of a task; None where the plan does not hold it."""
        count = self.results.plan.label_counts.get("test", {}).get(task)
        return None if count is None else count.positives

    @cached_property
    def gains_over_users(self) -> dict[str, Interval]:
        """The gain in mean NE of each method with its interval over seeds and users, where the runs hold groups."""
        return self._gains_over_users(self.analysis.means_over)

    @cached_property
    def task_gains_over_users(self) -> dict[str, dict[str, Interval]]:
        """The same for each task."""
        return {task: self._gains_over_users((task,)) for task in self.analysis.tasks}

    def _gains_over_users(self, tasks: tuple[str, ...]) -> dict[str, Interval]:
        results = with_diverged_counted(self.results)
        reference = {run.seed: run for run in _with_groups(results.of(EQUAL_WEIGHTS), tasks)}
        found = {}
        for method in self.results.plan.methods:
            runs = [run for run in _with_groups(results.of(method.name), tasks) if run.seed in reference]
            if method.name == EQUAL_WEIGHTS or not runs:
                continue
            weight, positives = (_sums(runs[0], tasks, name) for name in ("weight", "positives"))
            gain = gain_over_seeds_and_users(
                np.stack([_sums(run, tasks, "loss") for run in runs]),
                np.stack([_sums(reference[run.seed], tasks, "loss") for run in runs]),
                weight,
                positives,
            )
            if gain is not None:
                found[method.name] = gain
        return found


@dataclass(frozen=True)
class Suite:
    """The settings of a suite that have begun, and the titles of those that have not."""

    title: str
    settings: tuple[Setting, ...]
    not_begun: tuple[str, ...]


def read_suite(folder: Path, /) -> Suite:
    """Read ``suite.json`` and the folder of each setting.

    Raises:
        FolderError: there is no ``suite.json``, or a file is damaged.
    """
    file = folder / SUITE_FILE
    if not file.is_file():
        raise FolderError(
            f"Expected the folder of a suite with a {SUITE_FILE} in it, found none in {folder}: "
            "run 'equipoise evidence' first, or name its folder."
        )
    try:
        planned = _SuiteFile.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise FolderError(
            f'Expected {{"title", "settings": [{{"name", "title", "note"}}]}} in {file}, found something else '
            f"({where}: {first['msg']}): run 'equipoise evidence' again, which writes it."
        ) from error
    settings, not_begun = [], []
    for entry in planned.settings:
        of_setting = ResultFolder(folder / entry.name)
        title = entry.title or entry.name
        if not of_setting.has_plan():
            not_begun.append(title)
            continue
        results = of_setting.results()
        settings.append(Setting(entry.name, title, entry.note, results, analyse(results)))
    return Suite(planned.title, tuple(settings), tuple(not_begun))


def _with_groups(runs: list[Run], tasks: tuple[str, ...]) -> list[Run]:
    return [run for run in runs if run.status == "ok" and all(task in run.random_groups for task in tasks)]


def _sums(run: Run, tasks: tuple[str, ...], name: str) -> Array:
    return np.array([run.random_groups[task][name] for task in tasks], dtype=np.float64)
