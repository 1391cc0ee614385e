"""The record of one training run: a dataclass that is written as one line of JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic does not take that of typing before Python 3.12

__all__ = ["RUN", "CurvePoint", "Run", "Slice"]


@with_config(ConfigDict(extra="forbid"))
class CurvePoint(TypedDict):
    """One point of the learning curve: training losses since the point before and validation metrics, by task."""

    step: int
    examples: int
    train_loss: dict[str, float]
    validation: dict[str, dict[str, float]]


@with_config(ConfigDict(extra="forbid"))
class Slice(TypedDict):
    """Test rows that share a value of a column: an entry of :func:`equipoise.ranking.metrics.slice_metrics`."""

    value: str
    values: int
    rows: int
    tasks: dict[str, dict[str, float]]


@dataclass
class Run:
    """One method trained with one seed at one learning rate and table decay.

    A number that is not defined, such as the AUC of a task with one class or a metric of a diverged run, is NaN here
    and ``null`` in JSON.

    Attributes:
        status: "diverged" if a loss or a prediction was not finite, which ended the run.
        options: those of the method that tuning has chosen, as behind a method's name; they are not in ``method``.
        settings: those that decide the results, by name, as JSON holds them; `equipoise train` adds those of the data.
            Empty in records of earlier versions.
        steps: the number of batches. Single-task training makes one step per task for each of them.
        seconds: the time of the training steps, without evaluation and set-up.
        examples_per_second: examples seen, once per batch, over ``seconds``.
        peak_memory_bytes: the most bytes allocated on the accelerator, training split included; None on a CPU, where
            :func:`equipoise.comparison.throughput.peak_memory` measures it.
        test: task -> metrics on the test split, as sampled. Of a binary task ``auc``, ``ne``, ``log_loss``,
            ``calibration``, and ``gauc`` where the data set names a group; of a regression ``rmse``, ``mae``, ``r2``,
            and as ``ne`` the normalized squared error (see :func:`equipoise.ranking.metrics.task_metrics`).
        test_natural: the same at the natural rate: rows weighted, and predictions corrected where the schema says how
            the rows were sampled. Empty if all weights are 1.
        validation: as ``test``, on the whole validation split.
        calibration: task -> :func:`equipoise.ranking.metrics.calibration_curve` on the test split, as sampled.
        calibration_natural: the same at the natural rate; empty if all weights are 1.
        slices: column -> its slices of the test split, as sampled.
        random_groups: binary task -> sums over random groups of users of the test split, as sampled: ``loss`` (log
            loss), ``weight`` (rows) and ``positives``, for intervals that resample users. Empty if the data set names
            no group.
        curve: about eight points with ``step``, ``examples``, ``train_loss`` (task -> mean since the point
            before) and ``validation`` (task -> ``auc`` and ``ne``, ``gauc`` with a group, of a regression ``rmse`` and
            ``ne``; on at most ``evaluation_rows`` rows).
        non_finite: task -> the number of steps in which its loss or its gradient was not finite, if there are any.
        best_step: the step of the evaluation whose weights were kept and measured; 0 without ``stop_on``.
        skipped_steps: the number of steps left out because a loss or a gradient was not finite.
        irreproducible: why a second run with the same seed may give other last digits; "" if it gives the same.
        monitor: about fifty points with ``step`` and the readings of the monitor.
    """

    method: str
    seed: int
    lr: float
    table_decay: float = 0.0
    status: Literal["ok", "diverged"] = "ok"
    steps: NonNegativeInt = 0
    seconds: NonNegativeFloat = 0.0
    examples_per_second: float = math.nan
    peak_memory_bytes: NonNegativeInt | None = None
    test: dict[str, dict[str, float]] = field(default_factory=dict)
    test_natural: dict[str, dict[str, float]] = field(default_factory=dict)
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    calibration: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    calibration_natural: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    monitor: list[dict[str, int | float]] = field(default_factory=list)
    non_finite: dict[str, NonNegativeInt] = field(default_factory=dict)
    best_step: NonNegativeInt = 0
    skipped_steps: NonNegativeInt = 0
    irreproducible: str = ""
    options: str = ""
    random_groups: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def mean_validation_ne(self) -> float:
        """Mean of the normalized error on the validation split, over the tasks for which it is defined.

        The normalized error is the normalized entropy of a binary task and the normalized squared error of a
        regression: both are 1 for the best constant and 0 for a perfect prediction.

        NaN if it is defined for none; infinite if the run diverged.

        Example:
            >>> Run("equal", 0, 1e-3, validation={"a": {"ne": 0.5}, "b": {"ne": 0.7}}).mean_validation_ne
            0.6
        """
        if self.status == "diverged":
            return math.inf
        defined = [ne for metrics in self.validation.values() if math.isfinite(ne := metrics["ne"])]
        return sum(defined) / len(defined) if defined else math.nan

    def to_json(self) -> str:
        """Return the run as one line of strict JSON.

        Example:
            >>> Run("equal", 0, 1e-3).to_json()[:42]
            '{"method": "equal", "seed": 0, "lr": 0.001'
        """
        return json.dumps(_finite(asdict(self)), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Run:
        """Return the run that :meth:`to_json` wrote; other keys in the line are ignored.

        Raises:
            ValueError: the line is something else.

        Example:
            >>> Run.from_json(Run("equal", 0, 1e-3).to_json()).method
            'equal'
        """
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"expected names and values, found {type(record).__name__}")
        known = {entry.name for entry in fields(cls)} & record.keys()
        with_none = {"peak_memory_bytes", "settings"} & known  # in the others null stands for NaN
        values = _with_nan({key: record[key] for key in known - with_none}) | {key: record[key] for key in with_none}
        run = RUN.validate_json(json.dumps(values), strict=True)
        if not all("step" in reading for reading in run.monitor):
            raise ValueError("expected every reading of the monitor to say its step")
        return run


RUN: Final = TypeAdapter(Run)
"""Validates a run; strict, where the caller says so."""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: math.nan if entry is None else _with_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_nan(entry) for entry in value]
    return value
