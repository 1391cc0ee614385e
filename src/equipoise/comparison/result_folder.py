"""The folder of a comparison: its one writer and its one reader.

``plan.json`` and ``throughput.json`` are written whole or not at all. ``runs.jsonl`` and ``tuning.jsonl`` grow by one
line for each finished run, which is on disk before the next run begins. ``tuned.json`` holds what tuning chose.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from equipoise.comparison.results import PlannedRuns, Results, Throughput
from equipoise.comparison.tuned_rates import TUNED_FILE, Choice
from equipoise.errors import SettingError
from equipoise.training import Run
from equipoise.whole_files import write_whole

__all__ = ["FolderError", "ResultFolder", "without_details", "write_json"]

_THROUGHPUT: Final = TypeAdapter(dict[str, Throughput])


class FolderError(SettingError):
    """A folder cannot be used: the message says what was expected, what was found and what to do."""


class ResultFolder:
    """The files of one comparison.

    A comparison may still be running while it is read: a last line without its end is left out, and taken out of the
    file by the next run that is added.

    Args:
        path: the folder; :meth:`write_plan` makes it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     folder = ResultFolder(Path(name))
        ...     folder.add_run(Run("equal", seed=0, lr=1e-3))
        ...     [run.method for run in folder.runs()]
        ['equal']
    """

    def __init__(self, path: Path, /) -> None:
        self.path = path
        self._plan, self._throughput = path / "plan.json", path / "throughput.json"
        self._runs, self._tuning = path / "runs.jsonl", path / "tuning.jsonl"
        self._tuned = path / TUNED_FILE

    def __repr__(self) -> str:
        return f"ResultFolder({self.path})"

    def has_plan(self) -> bool:
        """Return whether a comparison was begun here."""
        return self._plan.is_file()

    def write_plan(self, content: Mapping[str, Any], /) -> None:
        """Write ``plan.json``, and make the folder if there is none."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._plan, content)

    def write_throughput(self, content: Mapping[str, Throughput], /) -> None:
        """Write ``throughput.json``: the speed and memory of each method measured so far."""
        write_json(self._throughput, {name: entry.model_dump(mode="json") for name, entry in content.items()})

    def write_tuned(self, choice: Choice, /) -> None:
        """Write ``tuned.json``: the rates that tuning chose, and the recipe they belong to."""
        chosen = {
            name: {key: value for key, value in rate._asdict().items() if value != ""}
            for name, rate in choice.chosen.items()
        }
        write_json(self._tuned, choice.model_dump(mode="json") | {"chosen": chosen})

    def add_run(self, run: Run, /) -> None:
        """Add a run of the comparison; it is on disk when this returns."""
        _append(self._runs, run)

    def add_tuning_run(self, run: Run, /) -> None:
        """Add a run that helps to choose rates; it is on disk when this returns.

        What only reports of single runs show is left out: curves, monitor, slices and groups of users.
        """
        _append(self._tuning, without_details(run))

    def plan(self) -> PlannedRuns:
        """Return what was to be run.

        Raises:
            FolderError: there is no plan, or it is damaged.
        """
        if not self.has_plan():
            raise FolderError(
                f"Expected the folder of a comparison with a plan.json in it, found none in {self.path}: "
                "run 'equipoise compare' first, or name its folder."
            )
        try:
            return PlannedRuns.model_validate_json(self._plan.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise FolderError(
                f"Expected the plan of a comparison in {self._plan}, found something else ({where}: {first['msg']}): "
                "name another folder, or remove this one and compare again."
            ) from error

    def runs(self) -> list[Run]:
        """Return the finished runs of the comparison, none if there is no file.

        Raises:
            FolderError: a line is not a run.
        """
        return _read_runs(self._runs)

    def tuning_runs(self) -> list[Run]:
        """Return the finished runs of tuning, none if there is no file.

        Raises:
            FolderError: a line is not a run.
        """
        return _read_runs(self._tuning)

    def throughput(self) -> dict[str, Throughput]:
        """Return the speed and memory of each method measured so far.

        Raises:
            FolderError: the file is damaged.
        """
        if not self._throughput.is_file():
            return {}
        try:
            found = _THROUGHPUT.validate_json(self._throughput.read_bytes())
        except ValueError as error:
            raise FolderError(
                f"{self._throughput}: expected ratio, low, high and pairs for each method, found something else: "
                "remove the file and run 'equipoise compare' again, which measures the speed again."
            ) from error
        return {method: entry for method, entry in found.items() if math.isfinite(entry.ratio)}

    def results(self) -> Results:
        """Return everything that the folder holds, for a report.

        Runs that the plan does not name are left out: other methods or seeds, or the rates before a new tuning.

        Raises:
            FolderError: there is no plan, or a file is damaged.
        """
        plan = self.plan()
        planned = {method.name for method in plan.methods}
        last = {
            (run.method, run.seed): run
            for run in self.runs()
            if run.method in planned and run.seed in plan.seeds and plan.uses(run)
        }
        return Results(plan, tuple(last.values()), tuple(self.tuning_runs()), self.throughput())


def without_details(run: Run, /) -> Run:
    """Return the run with its metrics alone, which take a tenth of the room.

    Example:
        >>> without_details(Run("equal", 0, 1e-3, settings={"lr": 1e-3})).settings
        {}
    """
    return replace(
        run, curve=[], monitor=[], calibration={}, calibration_natural={}, slices={}, random_groups={}, settings={}
    )  # fmt: skip


def write_json(path: Path, content: Mapping[str, Any], /) -> None:
    """Write a JSON file in place of the one before, whole or not at all.

    Raises:
        ValueError: ``content`` holds a number that is not finite.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _append(path: Path, run: Run) -> None:
    """Add a line to a file, after taking out a last line that an interruption has cut off."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    with path.open("ab") as file:
        file.write(f"{run.to_json()}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _read_runs(path: Path) -> list[Run]:
    if not path.is_file():
        return []
    *lines, _unfinished = path.read_text(encoding="utf-8", errors="replace").split("\n")
    runs = []
    for number, line in enumerate(lines, start=1):
        try:
            runs.append(Run.from_json(line))
        except ValueError as error:
            raise FolderError(
                f"{path}, line {number}: expected one finished run as JSON, found {line[:60]!r}: delete that line and "
                "run 'equipoise compare' again, which repeats only missing runs."
            ) from error
    return runs
