"""What one training run leaves behind: a dataclass that is one line of JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

__all__ = ["CurvePoint", "Run"]


class CurvePoint(TypedDict):
    """The learning curve at one step: train losses since the point before, and validation metrics, by task."""

    step: int
    examples: int
    train_loss: dict[str, float]
    validation: dict[str, dict[str, float]]


@dataclass
class Run:
    """One method trained with one seed at one learning rate and table decay.

    Numbers that do not exist (the AUC of a task with one class only, any metric of a diverged run) are NaN
    here and ``null`` in JSON.

    Attributes:
        status: ``"diverged"`` if a loss or a prediction was not finite; the run ended there.
        steps: batches seen. Single-task training makes one step per task and batch, and counts the batch
            once.
        seconds: of training steps alone, without evaluation and set-up.
        examples_per_second: examples seen, once per batch, over ``seconds``.
        peak_memory_bytes: most bytes allocated on the accelerator; None on a CPU, where
            :func:`equipoise.compare.throughput.peak_memory` measures it.
        test: task -> ``auc``, ``ne``, ``log_loss``, ``calibration`` on the test split, as sampled.
        test_natural: the same weighted back to the natural rate; empty where all weights are one.
        validation: as ``test``, on the whole validation split.
        curve: about eight points with ``step``, ``examples``, ``train_loss`` (task -> mean since the point
            before) and ``validation`` (task -> ``auc`` and ``ne``, on at most ``evaluation_rows`` rows).
        non_finite: task -> in how many steps its loss, or its gradient, was not finite; tasks that had none left out.
        skipped_steps: how many steps were left out because a loss or a gradient was not finite.
        irreproducible: why a second run with the same seed may give other last digits; "" if nothing makes it.
        monitor: about fifty points with ``step`` and what the monitor read there.
    """

    method: str
    seed: int
    lr: float
    table_decay: float = 0.0
    status: Literal["ok", "diverged"] = "ok"
    steps: int = 0
    seconds: float = 0.0
    examples_per_second: float = math.nan
    peak_memory_bytes: int | None = None
    test: dict[str, dict[str, float]] = field(default_factory=dict)
    test_natural: dict[str, dict[str, float]] = field(default_factory=dict)
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    monitor: list[dict[str, int | float]] = field(default_factory=list)
    non_finite: dict[str, int] = field(default_factory=dict)
    skipped_steps: int = 0
    irreproducible: str = ""

    @property
    def mean_validation_ne(self) -> float:
        """Mean of the normalized entropy on the validation split, over the tasks for which it is defined.

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
        """One line of strict JSON.

        Example:
            >>> Run("equal", 0, 1e-3).to_json()[:42]
            '{"method": "equal", "seed": 0, "lr": 0.001'
        """
        return json.dumps(_finite(asdict(self)), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Run:
        """The run that :meth:`to_json` wrote; other keys in the line are left out.

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
        memory = record.get("peak_memory_bytes")
        run = _RUN.validate_python(_with_nan({key: record[key] for key in known}) | {"peak_memory_bytes": memory})
        if not all("step" in reading for reading in run.monitor):
            raise ValueError("expected every reading of the monitor to say its step")
        return run


_RUN = TypeAdapter(Run)


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
