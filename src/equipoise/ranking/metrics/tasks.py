"""All metrics of all tasks of a schema, over all rows and over slices of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import torch
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
from equipoise.ranking.metrics.rows import checked_columns, checked_groups
from equipoise.ranking.predictions import scores
from equipoise.schema import Schema

__all__ = ["MOST_SLICES", "Rows", "checked_rows", "slice_metrics", "task_metrics", "values_of"]

MOST_SLICES: Final = 20
"""The values of a column that get a slice of their own; rarer ones share one."""
Rows = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Some rows: predictions [B, M], labels [B, M], weight [B, 1], and groups [B, 1] or None."""
_AT_A_TIME = 1 << 18  # fresh memory for the checks of all rows at once would take longer to get than to fill


def task_metrics(
    schema: Schema,
    outputs: Sequence[Tensor],
    labels: Tensor,
    weight: Tensor | None = None,
    groups: Tensor | None = None,
    /,
    *,
    natural: bool = False,
) -> dict[str, dict[str, float]]:
    """Return all metrics of all tasks of a schema, from the outputs of a model for all rows.

    Of binary tasks: ``auc``, ``ne`` (normalized entropy), ``log_loss``, ``calibration``, and with groups ``gauc``.
    Of regressions: ``rmse``, ``mae`` and ``r2`` in the target's unit, and ``ne``, the normalized squared error:
    squared error over variance. That is 1 − R², but for the loss "log", where it is taken of log(1 + target), as
    the loss is.

    Args:
        outputs: one tensor of shape [B] per task, in the schema's order: a logit, or of a regression the standardised
            target.
        labels: of binary tasks 0, 1, or NaN or −1 where missing; of regressions a number, or NaN where missing; shape
            [B, number of tasks].
        weight: non-negative and finite, shape [B], the same for all tasks; None: 1 for every row.
        groups: whole numbers, shape [B], for ``gauc``; None: without it.
        natural: correct the predictions to the natural rate (:func:`equipoise.ranking.predictions.predictions`). The
            rows should then be weighted by the number of natural rows that each stands for.

    Raises:
        ValueError: shapes differ, a label is something else, or a weight is negative or not finite.

    Example:
        >>> from equipoise.schema import Numeric, Schema, Task
        >>> schema = Schema([], [Numeric("age")], [Task("click"), Task("buy")])
        >>> labels = torch.tensor([[0.0, 1.0], [1.0, float("nan")]])
        >>> found = task_metrics(schema, (torch.tensor([-1.0, 1.0]), torch.zeros(2)), labels)
        >>> found["click"]["auc"], found["buy"]["calibration"], found["buy"]["auc"]
        (1.0, 0.5, nan)
    """
    schema = schema if natural else replace(schema, sampled=None)
    lengths = {len(column) for column in (*outputs, labels, weight, groups) if column is not None}
    size = _AT_A_TIME if len(lengths) == 1 else max(lengths)  # columns that differ are refused as a whole
    parts = [
        checked_rows(
            schema,
            [output[start : start + size] for output in outputs],
            labels[start : start + size],
            None if weight is None else weight[start : start + size],
            None if groups is None else groups[start : start + size],
        )
        for start in range(0, max(*lengths, 1), size)
    ]
    return values_of(schema, parts)


def checked_rows(
    schema: Schema, outputs: Sequence[Tensor], labels: Tensor, weight: Tensor | None, groups: Tensor | None
) -> Rows:
    """Check rows, and return their scores by :func:`equipoise.ranking.predictions.scores` beside what was given.

    They are float32 where that is exact: outputs and labels are, and no score is computed from an output. Otherwise
    float64.
    """
    tasks = schema.tasks
    if len(outputs) != len(tasks) or labels.ndim != 2 or labels.shape[1] != len(tasks):
        raise ValueError(
            f"Expected {len(tasks)} output tensors and labels of shape [B, {len(tasks)}], for the tasks "
            f"{', '.join(schema.task_names)}; found {len(outputs)} and {list(labels.shape)}."
        )
    exact = schema.sampled is None and all(task.binary and task.positive_weight == 1 for task in tasks)
    narrow = exact and all(column.dtype != torch.float64 for column in (*outputs, labels))
    dtype = torch.float32 if narrow else torch.float64
    predicted = scores([output.to(dtype) for output in outputs], schema)
    columns = checked_columns(
        predicted, labels.unbind(1), weight, binary=[task.binary for task in tasks], called="Outputs", dtype=dtype
    )
    return (*columns, None if groups is None else checked_groups(groups, labels))


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
        outputs: as for :func:`task_metrics`.
        labels: as there.
        codes: the value of each row, whole numbers, shape [B].
        weight: as for :func:`task_metrics`.
        names: the names of the codes 0, 1, …; a code without one is named by its number.
        most: how many values get a slice of their own. The others share one, if they are two or more.

    Returns:
        Per slice, most rows first and the rest last: ``value`` (its name; "" for the rest), ``values`` (how many values
        are in it), ``rows``, and ``tasks``: per task ``rows`` (those with a label), of binary tasks ``positives``, and
        the metrics of :func:`task_metrics`.

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
        metrics = values_of(sampled_rate, [(predicted[rows], labels_here, weight_here, None)])
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


def values_of(schema: Schema, parts: Sequence[Rows]) -> dict[str, dict[str, float]]:
    """Return the metrics of each task, see :func:`task_metrics`.

    Args:
        schema: its ``sampled`` has no effect any more.
        parts: some rows each, at least one part. They are joined task by task, since a copy of all would take much
            memory.
    """

    def column(at: int) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.cat([part[0][:, at] for part in parts]),
            torch.cat([part[1][:, at] for part in parts]),
            torch.cat([part[2][:, 0] for part in parts]),
        )

    grouping = [part[3].squeeze(1) for part in parts if part[3] is not None]
    groups = torch.cat(grouping) if grouping else None

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
