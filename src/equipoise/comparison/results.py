"""The results of a comparison: its plan, the runs finished so far, tuning and throughput."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from equipoise.comparison.tuned_rates import Rate, rate_of
from equipoise.training import Run

__all__ = [
    "EQUAL_WEIGHTS",
    "SINGLE_TASK",
    "STATIC_WEIGHTS",
    "Groups",
    "LabelCount",
    "LabelRate",
    "NaturalRate",
    "PlannedMethod",
    "PlannedRuns",
    "PlannedTask",
    "Results",
    "Throughput",
]

EQUAL_WEIGHTS = "equal"
"""The method that the others are compared with."""

SINGLE_TASK = "single-task"
"""One model per task: what negative transfer and delta-m are measured against."""

_EDGE = 0.1  # the share of a range that counts as its end


STATIC_WEIGHTS = "static"
"""Fixed weights of the losses: the cheapest alternative to balancing."""


class PlannedMethod(BaseModel):
    """A method as the plan describes it."""

    name: str
    label: str
    family: str = ""
    summary: str = ""
    settings: str = ""


class PlannedTask(BaseModel):
    """A task as the plan describes it; see :class:`equipoise.schema.Task`."""

    description: str = ""
    kind: Literal["binary", "regression"] = "binary"
    loss: str = "squared"
    after: str = ""
    over: Literal["parent", "all"] = "parent"


class LabelRate(BaseModel):
    """A task's label in the training split: mean label (share of positives), and share of rows that have a label."""

    rate: float | None = None
    labelled: float | None = None


class LabelCount(BaseModel):
    """Number of rows of a split with a task's label, and number of positive ones among them (None: a regression)."""

    labelled: int
    positives: int | None = None

    @property
    def scarcest(self) -> int:
        """Number of rows of the rarer class; of a regression, of all rows."""
        return self.labelled if self.positives is None else min(self.positives, self.labelled - self.positives)


class Groups(BaseModel):
    """The groups of the test rows by which AUC is grouped: for each task, those with both classes and those without."""

    key: str
    counted: dict[str, int]
    left_out: dict[str, int]


class NaturalRate(BaseModel):
    """The sampling that predictions are corrected for: task and rate, and tasks that cannot be corrected."""

    task: str
    rate: float
    biased: list[str] = Field(default_factory=list)


class PlannedRuns(BaseModel):
    """The content of ``plan.json``: planned runs, data, software and machine."""

    dataset: str
    dataset_notes: list[str] = Field(default_factory=list)
    best_ne: dict[str, float] = Field(default_factory=dict)
    model: str
    tasks: list[str] = Field(min_length=1)
    about_tasks: dict[str, PlannedTask] = Field(default_factory=dict)
    natural_rate: NaturalRate | None = None
    groups: Groups | None = None
    user_groups: list[str] = Field(default_factory=list)
    methods: list[PlannedMethod] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    epochs: int
    batch_size: int
    schedule: str
    rates: dict[str, float] = Field(default_factory=dict)
    table_decays: dict[str, float] = Field(default_factory=dict)
    chosen_options: dict[str, str] = Field(default_factory=dict)
    rate_doubts: dict[str, str] = Field(default_factory=dict)
    grid: list[float] | None = None
    decay_grid: list[float] | None = None
    rows: dict[str, int] = Field(default_factory=dict)
    label_rates: dict[str, LabelRate] = Field(default_factory=dict)
    label_counts: dict[str, dict[str, LabelCount]] = Field(default_factory=dict)
    fingerprint: str = ""
    versions: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    generated: bool = False
    options: dict[str, Any] = Field(default_factory=dict)
    from_python: list[str] = Field(default_factory=list)

    @property
    def searched(self) -> bool:
        """True if tuning searched between the ends of the grids for some method, instead of trying every point."""
        return self.options.get("tune_trials") is not None or bool(self.options.get("trials"))

    def about(self, task: str) -> PlannedTask:
        """Return the description of a task; plans from before it was kept have binary tasks alone."""
        return self.about_tasks.get(task, PlannedTask())

    def rate(self, method: str) -> Rate | None:
        """Return the rate that a method is trained with; None where the plan names none."""
        if method not in self.rates:
            return None
        return Rate(self.rates[method], self.table_decays.get(method, 0.0), self.chosen_options.get(method, ""))

    def uses(self, run: Run) -> bool:
        """Return whether a run was made at the rate that the plan has for its method."""
        return self.rate(run.method) in {None, rate_of(run)}


class Throughput(BaseModel):
    """QPS of a method over QPS of equal weights, with its 95 % interval over interleaved pairs of steps."""

    ratio: float
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    peak_memory: float | None = None


@dataclass(frozen=True)
class Results:
    """Everything a comparison's folder holds.

    Attributes:
        plan: the planned runs.
        runs: the finished runs of the plan, at the plan's learning rates.
        tuning: the runs that chose the learning rates.
        throughput: method name to its speed; empty before it was measured.
    """

    plan: PlannedRuns
    runs: tuple[Run, ...]
    tuning: tuple[Run, ...]
    throughput: Mapping[str, Throughput]

    @property
    def planned(self) -> int:
        """Number of runs of a finished comparison."""
        return len(self.plan.methods) * len(self.plan.seeds)

    def of(self, method: str) -> list[Run]:
        """Return a method's finished runs, including diverged ones, in the order of the plan's seeds."""
        found = {run.seed: run for run in self.runs if run.method == method}
        return [found[seed] for seed in self.plan.seeds if seed in found]

    def at_edge(self, method: str) -> bool:
        """Return whether a method's tuned rate or table decay is at an end of its grid; a decay of 0 does not count.

        Of a search between the ends of the grid the last tenth of the range counts as its end.
        """
        chosen = self.plan.rate(method)
        own = [rate_of(run) for run in self.tuning if run.method == method]
        if chosen is None or (chosen.lr, chosen.table_decay) not in {(rate.lr, rate.table_decay) for rate in own}:
            return False
        if self.plan.searched and self.plan.grid and self.plan.decay_grid:
            low, high = math.log(min(self.plan.grid)), math.log(max(self.plan.grid))
            part = (math.log(chosen.lr) - low) / (high - low) if high > low else 0.5
            return not _EDGE < part < 1 - _EDGE or chosen.table_decay > (1 - _EDGE) * max(self.plan.decay_grid) > 0
        rates, decays = sorted({rate.lr for rate in own}), sorted({rate.table_decay for rate in own})
        low_decay = decays[:1] if decays[0] > 0 else []
        return (len(rates) > 1 and chosen.lr in {rates[0], rates[-1]}) or (
            len(decays) > 1 and chosen.table_decay in {*low_decay, decays[-1]}
        )
