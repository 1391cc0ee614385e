"""All metrics of all tasks of a schema, over a whole split and over slices of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.ranking.metrics.binary import (
    area_under_curve,
    calibration_of_sums,
    class_sums,
    entropy_of_sums,
    log_loss_of_sums,
)
from equipoise.ranking.metrics.grouped import grouped_areas
from equipoise.ranking.metrics.regression import mae_of_moments, moments, r2_of_moments, rmse_of_moments
from equipoise.ranking.metrics.rows import Metric, checked_columns, checked_groups
from equipoise.ranking.predictions import scores
from equipoise.schema import Schema

__all__ = ["MOST_SLICES", "TaskMetrics", "slice_metrics"]

MOST_SLICES: Final = 20
"""The values of a column that get a slice of their own; rarer ones share one."""


class TaskMetrics(Metric):
    """All metrics of all tasks of a schema, from the outputs of a model, over batches and ranks.

    Keeps every row, 8 (M + 1) bytes each for M binary tasks (10 million rows of 4 tasks: 400 MB), and 8 more with
    groups. Where predictions are corrected or belong to a regression, or anything is float64, it is 8 (2M + 1).

    Args:
        natural: correct the predictions to the natural rate (:func:`equipoise.ranking.predictions.predictions`). The
            rows should then be weighted by the number of natural rows that each stands for.
        grouped: :meth:`update` gets the group of each row, and binary tasks have ``gauc``.

    Example:
        >>> from equipoise.schema import Numeric, Schema, Task
        >>> metrics = TaskMetrics(Schema([], [Numeric("age")], [Task("click"), Task("buy")]))
        >>> labels = torch.tensor([[0.0, 1.0], [1.0, float("nan")]])
        >>> metrics.update((torch.tensor([-1.0, 1.0]), torch.zeros(2)), labels)
        >>> results = metrics.compute()
        >>> results["click"]["auc"], results["buy"]["calibration"], results["buy"]["auc"]
        (1.0, 0.5, nan)
    """

    is_differentiable = False
    full_state_update = False
    predicted: list[Tensor]
    labels: list[Tensor]
    weight: list[Tensor]
    groups: list[Tensor]

    def __init__(self, schema: Schema, *, natural: bool = False, grouped: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._schema = schema if natural else replace(schema, sampled=None)
        self._grouped = grouped
        tasks = schema.tasks
        self._as_they_come = self._schema.sampled is None and all(
            task.binary and task.positive_weight == 1 for task in tasks
        )
        self._widths = {"predicted": len(tasks), "labels": len(tasks), "weight": 1, "groups": 1}
        for name in self._widths:
            self.add_state(name, [], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks, as ``torchmetrics.Metric.sync``."""
        if dist.is_available() and dist.is_initialized():
            # All ranks must send one type and width, also one that has seen no row.
            for name in self._widths:
                setattr(self, name, [torch.cat([self._no_rows(name), *self._parts(name)])])
        super().sync(*args, **kwargs)

    def _parts(self, name: str) -> list[Tensor]:
        """Return a state's rows, some at a time: at least one part, each of shape [N, the state's width]."""
        parts: list[Tensor] | Tensor = getattr(self, name)
        if isinstance(parts, Tensor):  # after a gather
            return [parts]
        return parts or [self._no_rows(name)]

    def _no_rows(self, name: str) -> Tensor:
        return torch.empty(0, self._widths[name], dtype=torch.float64, device=self.device)

    def update(
        self, outputs: Sequence[Tensor], labels: Tensor, weight: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            outputs: one tensor of shape [B] per task, in the schema's order: a logit, or of a regression the
                standardised target.
            labels: of binary tasks 0, 1, or NaN or −1 where missing; of regressions a number, or NaN where missing;
                shape [B, number of tasks].
            weight: non-negative and finite, shape [B], the same for all tasks; None: 1 for every row.
            groups: whole numbers, shape [B]; for grouped metrics and only for them.

        Raises:
            ValueError: shapes differ, a label is something else, a weight is negative or not finite, or groups are
                given or missing where they should not be.
        """
        tasks = self._schema.tasks
        if len(outputs) != len(tasks) or labels.ndim != 2 or labels.shape[1] != len(tasks):
            raise ValueError(
                f"Expected {len(tasks)} output tensors and labels of shape [B, {len(tasks)}], for the tasks "
                f"{', '.join(self._schema.task_names)}; found {len(outputs)} and {list(labels.shape)}."
            )
        if (groups is not None) != self._grouped:
            raise ValueError(f"Groups go with grouped=True and only with it, found grouped={self._grouped}.")
        wide = not self._as_they_come or any(column.dtype == torch.float64 for column in (*outputs, labels))
        dtype = torch.float64 if wide else torch.float32
        predicted = scores([output.to(dtype) for output in outputs], self._schema)
        columns = checked_columns(
            predicted, labels.unbind(1), weight, binary=[task.binary for task in tasks], called="Outputs", dtype=dtype
        )
        group = [] if groups is None else [checked_groups(groups, labels)]
        for name, column in zip(self._widths, (*columns, *group), strict=False):
            getattr(self, name).append(column)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the values of each task.

        Of binary tasks: ``auc``, ``ne`` (normalized entropy), ``log_loss``, ``calibration``, and with groups ``gauc``.
        Of regressions: ``rmse``, ``mae`` and ``r2`` in the target's unit, and ``ne``, the normalized squared error:
        squared error over variance. That is 1 − R², but for the loss "log", where it is taken of log(1 + target), as
        the loss is.
        """
        predicted, labels, weight, groups = (self._parts(name) for name in self._widths)
        parts = list(zip(predicted, labels, weight, strict=True))
        return _values(self._schema, parts, torch.cat(groups).squeeze(1) if self._grouped else None)


def slice_metrics(
    schema: Schema,
    outputs: Sequence[Tensor],
    labels: Tensor,
    codes: Tensor,
    weight: Tensor | None = None,
    /,
    *,
    names: Sequence[str] = (),
    most: int = MOST_SLICES,
) -> list[dict[str, Any]]:
    """Return the metrics of the rows that share a value of a column, for its most frequent values and for the rest.

    Args:
        outputs: as for :meth:`TaskMetrics.update`.
        labels: as there.
        codes: the value of each row, whole numbers, shape [B].
        weight: as for :meth:`TaskMetrics.update`.
        names: the names of the codes 0, 1, …; a code without one is named by its number.
        most: how many values get a slice of their own. The others share one, if they are two or more.

    Returns:
        Per slice, most rows first and the rest last: ``value`` (its name; "" for the rest), ``values`` (how many values
        are in it), ``rows``, and ``tasks``: per task ``rows`` (those with a label), of binary tasks ``positives``, and
        the metrics of :meth:`TaskMetrics.compute`.

    Example:
        >>> from equipoise.schema import Numeric, Schema, Task
        >>> schema = Schema([], [Numeric("age")], [Task("click")])
        >>> outputs, labels = [torch.tensor([-1.0, 1.0, 1.0])], torch.tensor([[0.0], [1.0], [0.0]])
        >>> for found in slice_metrics(schema, outputs, labels, torch.tensor([1, 1, 0]), names=["app", "web"]):
        ...     print(found["value"], found["rows"], found["tasks"]["click"]["auc"])
        web 2 1.0
        app 1 nan
    """
    values, places, counts = torch.unique(codes, return_inverse=True, return_counts=True)
    order = counts.sort(descending=True, stable=True).indices
    own = len(order) if len(order) <= most + 1 else most
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    slices = rank[places].clamp(max=own)
    by_slice = slices.sort(stable=True).indices
    found = []
    sampled_rate = replace(schema, sampled=None)
    predicted, truth, weights = checked_columns(
        scores([output.double() for output in outputs], sampled_rate), labels.unbind(1), weight,
        binary=[task.binary for task in schema.tasks], called="Outputs",
    )  # fmt: skip
    ends = torch.bincount(slices).cumsum(0).tolist()
    for place, (start, end) in enumerate(pairwise([0, *ends])):
        rows = by_slice[start:end]
        code = int(values[order[place]])
        labels_here, weight_here = truth[rows], weights[rows]
        metrics = _values(sampled_rate, [(predicted[rows], labels_here, weight_here)], None)
        counted = ~labels_here.isnan() & (weight_here > 0)
        labelled, positive = counted.sum(0).tolist(), (counted & (labels_here > 0)).sum(0).tolist()
        is_rest = place == own
        found.append({
            "value": "" if is_rest else names[code] if 0 <= code < len(names) else str(code),
            "values": len(order) - own if is_rest else 1,
            "rows": len(rows),
            "tasks": {
                task.name: {"rows": labelled[at]}
                | ({"positives": positive[at]} if task.binary else {})
                | metrics[task.name]
                for at, task in enumerate(schema.tasks)
            },
        })  # fmt: skip
    return found


def _values(
    schema: Schema, parts: Sequence[tuple[Tensor, Tensor, Tensor]], groups: Tensor | None
) -> dict[str, dict[str, float]]:
    """Return the metrics of each task.

    Args:
        parts: some rows each: scores and labels, shape [N, M], and weight, shape [N, 1]. They are joined task by task,
            since a copy of all would take much memory.
        groups: of all rows, shape [total N].
    """

    def column(at: int) -> tuple[Tensor, Tensor, Tensor]:
        predicted, labels, weight = zip(*parts, strict=True)
        return (
            torch.cat([part[:, at] for part in predicted]),
            torch.cat([part[:, at] for part in labels]),
            torch.cat([part[:, 0] for part in weight]),
        )

    found: dict[str, dict[str, float]] = {}
    binary = [at for at, task in enumerate(schema.tasks) if task.binary]
    sums = torch.stack([class_sums(part[0][:, binary], part[1][:, binary], part[2]) for part in parts]).sum(0)
    of_sums = [reduce(sums).tolist() for reduce in (entropy_of_sums, log_loss_of_sums, calibration_of_sums)]
    for place, at in enumerate(binary):
        logits, labels, weight = column(at)
        values = {"auc": area_under_curve(logits, labels, weight).item()}
        values |= dict(zip(("ne", "log_loss", "calibration"), (each[place] for each in of_sums), strict=True))
        if groups is not None:
            values["gauc"] = grouped_areas(logits.double(), labels.double(), weight, groups).mean.item()
        found[schema.tasks[at].name] = values
    for at, task in enumerate(schema.tasks):
        if not task.binary:
            outputs, targets, weight = (values.double().unsqueeze(1) for values in column(at))
            in_unit = moments(outputs, targets, weight)
            as_learned = moments(outputs.log1p(), targets.log1p(), weight) if task.loss == "log" else in_unit
            found[task.name] = {
                "rmse": rmse_of_moments(in_unit).item(),
                "mae": mae_of_moments(in_unit).item(),
                "r2": r2_of_moments(in_unit).item(),
                "ne": 1 - r2_of_moments(as_learned).item(),
            }
    return {name: found[name] for name in schema.task_names}
