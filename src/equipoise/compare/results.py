"""Reading the folder of a comparison: the plan, the runs that finished so far, tuning, throughput."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from equipoise.training import Run, SettingError

__all__ = [
    "EQUAL_WEIGHTS",
    "SINGLE_TASK",
    "LabelRate",
    "PlannedMethod",
    "PlannedRuns",
    "ReportError",
    "Results",
    "Throughput",
    "read_results",
]

EQUAL_WEIGHTS = "equal"
"""The method that the others are compared with."""

SINGLE_TASK = "single-task"
"""One model per task: what negative transfer and delta-m are measured against."""


class ReportError(SettingError):
    """A folder cannot be reported on: the message says what was expected, what was found and what to do."""


class PlannedMethod(BaseModel):
    """A method as the plan describes it."""

    name: str
    label: str
    family: str = ""
    summary: str = ""
    settings: str = ""


class LabelRate(BaseModel):
    """A task's label in the training split: share of positives, and share of rows that have a label."""

    rate: float | None = None
    labelled: float | None = None


class PlannedOptions(BaseModel):
    """The settings of the command that made the comparison."""

    data: str | None = None
    model: str | None = None
    seeds: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    schedule: str | None = None
    non_finite: str | None = None
    data_options: dict[str, Any] = Field(default_factory=dict)
    model_options: dict[str, Any] = Field(default_factory=dict)
    loss_scale: dict[str, Any] = Field(default_factory=dict)
    rates: dict[str, Any] = Field(default_factory=dict)
    methods: list[str] = Field(default_factory=list)
    tune: bool = False
    tune_seeds: int = 1


class PlannedRuns(BaseModel):
    """``plan.json``: what was to be run, on what, and with which software and machine."""

    dataset: str
    dataset_notes: list[str] = Field(default_factory=list)
    best_ne: dict[str, float] = Field(default_factory=dict)
    model: str
    tasks: list[str] = Field(min_length=1)
    methods: list[PlannedMethod] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    epochs: int
    batch_size: int
    schedule: str
    rates: dict[str, float] = Field(default_factory=dict)
    grid: list[float] | None = None
    rows: dict[str, int] = Field(default_factory=dict)
    label_rates: dict[str, LabelRate] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    generated: bool = False
    options: PlannedOptions = Field(default_factory=PlannedOptions)


class Throughput(BaseModel):
    """QPS of a method over QPS of equal weights, with its 95 % interval over interleaved pairs of steps."""

    ratio: float
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    peak_memory: float | None = None


_THROUGHPUT: Final = TypeAdapter(dict[str, Throughput])


@dataclass(frozen=True)
class Results:
    """Everything a comparison's folder holds.

    Attributes:
        plan: what was to be run.
        runs: what has finished of the plan, at the plan's learning rates.
        tuning: the runs that chose the learning rates.
        throughput: method name to its speed; empty before it was measured.
    """

    plan: PlannedRuns
    runs: tuple[Run, ...]
    tuning: tuple[Run, ...]
    throughput: Mapping[str, Throughput]

    @property
    def planned(self) -> int:
        """How many runs a finished comparison has."""
        return len(self.plan.methods) * len(self.plan.seeds)

    def of(self, method: str) -> list[Run]:
        """One method's finished runs, diverged ones included, in the order of the plan's seeds."""
        found = {run.seed: run for run in self.runs if run.method == method}
        return [found[seed] for seed in self.plan.seeds if seed in found]


def read_results(folder: Path) -> Results:
    """What ``equipoise compare`` has written into ``folder`` so far.

    A comparison may still be running: a last line without its end is left out.

    Raises:
        ReportError: there is no plan in the folder, or a file in it is not what ``equipoise compare`` writes.
    """
    plan_file = folder / "plan.json"
    if not plan_file.is_file():
        raise ReportError(
            f"Expected the folder of a comparison with a plan.json in it, found none in {folder}: "
            "run 'equipoise compare' first, or name its folder."
        )
    try:
        plan = PlannedRuns.model_validate_json(plan_file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ReportError(
            f"{plan_file}: {where}: {first['msg']}. Run 'equipoise compare' again to write the plan anew."
        ) from error
    names = {method.name for method in plan.methods}
    last = {
        (run.method, run.seed): run
        for run in _read_runs(folder / "runs.jsonl")
        # a folder that was tuned again also holds runs at the rates before
        if run.method in names and run.seed in plan.seeds and run.lr == plan.rates.get(run.method, run.lr)
    }
    return Results(plan, tuple(last.values()), tuple(_read_runs(folder / "tuning.jsonl")), _read_throughput(folder))


def _read_runs(file: Path) -> list[Run]:
    if not file.is_file():
        return []
    *lines, unfinished = file.read_text(encoding="utf-8", errors="replace").split("\n")
    del unfinished  # empty after a complete last line; else another process is just writing it
    runs = []
    for number, line in enumerate(lines, start=1):
        try:
            runs.append(Run.from_json(line))
        except ValueError as error:
            raise ReportError(
                f"{file}, line {number}: expected one finished run as JSON, found {line[:60]!r}: "
                "remove the line and run 'equipoise compare' again, which repeats only missing runs."
            ) from error
    return runs


def _read_throughput(folder: Path) -> dict[str, Throughput]:
    file = folder / "throughput.json"
    if not file.is_file():
        return {}
    try:
        found = _THROUGHPUT.validate_json(file.read_bytes())
    except ValueError as error:
        raise ReportError(
            f"{file}: expected ratio, low, high and pairs for every method, found something else: "
            "remove the file and run 'equipoise compare' again, which measures the speed anew."
        ) from error
    return {method: entry for method, entry in found.items() if math.isfinite(entry.ratio)}
