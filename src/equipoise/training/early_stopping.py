"""Early stopping: the best evaluation by a chosen metric, the weights it was made with, and when to end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from torch import Tensor

from equipoise.errors import SettingError
from equipoise.schema import Schema
from equipoise.settings import TrainingSettings

__all__ = ["EarlyStopping"]

_OF_BINARY: Final = ("ne", "auc", "gauc", "log_loss")
_OF_REGRESSION: Final = ("ne", "rmse", "mae", "r2")
_HIGHER_IS_BETTER: Final = {"auc", "gauc", "r2"}

Weights = list[dict[str, Tensor]]
"""Of each model of a learner, its weights by name."""


@dataclass
class EarlyStopping:
    """Follows one metric over the evaluations of a training.

    Attributes:
        metric: such as "ne"; compared by its mean over ``tasks``, without those for which it is not defined.
        tasks: the tasks that have it.
        patience: how many evaluations in a row may fail to be better than the best before them.
        best_step: the step of the best evaluation; 0 before the first.
        best: its value.
        since: the evaluations after it.
        weights: those that it was made with; empty before.

    Example:
        >>> from equipoise.schema import Numeric, Task
        >>> schema = Schema([], [Numeric("age")], [Task("click"), Task("buy")])
        >>> stopping = EarlyStopping.of(TrainingSettings.of(stop_on="buy:auc", patience=2), schema)
        >>> for step, auc in enumerate([0.6, 0.7, 0.69, 0.7], start=1):
        ...     if stopping.is_better(step, {"buy": {"auc": auc}}):
        ...         stopping.weights = []
        >>> stopping.best_step, stopping.over
        (2, True)
    """

    metric: str
    tasks: Sequence[str]
    patience: int
    best_step: int = 0
    best: float = 0.0
    since: int = 0
    weights: Weights = field(default_factory=list)

    @classmethod
    def of(cls, settings: TrainingSettings, schema: Schema, /, *, group: str = "") -> Self | None:
        """Return what ``stop_on`` and ``patience`` describe; None without ``stop_on``.

        Args:
            group: the key by which the data set groups AUC; none if empty.

        Raises:
            SettingError: the metric or the task is not known, no task has the metric, or it needs a group.
        """
        if settings.stop_on is None:
            return None
        name, _, metric = settings.stop_on.rpartition(":")
        if metric not in {*_OF_BINARY, *_OF_REGRESSION} or (name and name not in schema.task_names):
            metrics = ", ".join(dict.fromkeys((*_OF_BINARY, *_OF_REGRESSION)))
            raise SettingError(
                f"stop_on: expected a metric ({metrics}) or TASK:METRIC with a task out of "
                f"{', '.join(schema.task_names)}; found {settings.stop_on!r}."
            )
        having = [task.name for task in schema.tasks if metric in (_OF_BINARY if task.binary else _OF_REGRESSION)]
        tasks = [task for task in having if name in {"", task}]
        if not tasks:
            raise SettingError(
                f"stop_on: {name or 'no task'} {'does not have' if name else 'has'} the metric {metric}, which is one "
                f"of {'binary tasks' if metric in _OF_BINARY else 'regressions'}: name another, such as ne."
            )
        if metric == "gauc" and not group:
            raise SettingError("stop_on: gauc needs a data set that names its group (data: user), found none.")
        return cls(metric, tasks, settings.patience)

    @property
    def over(self) -> bool:
        """True if the training should end."""
        return self.since >= self.patience

    def is_better(self, step: int, metrics: Mapping[str, Mapping[str, float]], /) -> bool:
        """Note an evaluation; return True if it is the best so far, whose weights the caller then sets.

        Args:
            metrics: task -> metrics on the validation rows.

        Raises:
            SettingError: the metric is not defined for any of the tasks on these rows.
        """
        defined = [value for task in self.tasks if math.isfinite(value := metrics[task][self.metric])]
        if not defined:
            raise SettingError(
                f"stop_on: {self.metric} of {', '.join(self.tasks)} is not defined on the validation rows of the "
                "learning curve: take more evaluation_rows, or another metric."
            )
        value = math.fsum(defined) / len(defined)
        better = not self.best_step or (value > self.best if self.metric in _HIGHER_IS_BETTER else value < self.best)
        if better:
            self.best, self.best_step, self.since = value, step, 0
        else:
            self.since += 1
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed training."""
        return {"best_step": self.best_step, "best": self.best, "since": self.since, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from a state that :meth:`state_dict` gave."""
        self.best_step, self.best, self.since = state["best_step"], state["best"], state["since"]
        self.weights = state["weights"]
