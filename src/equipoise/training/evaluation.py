"""The evaluation of a training: predictions on a split, metrics, the points of the learning curve, the end of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from equipoise.data.dataset import AnySplit, Dataset
from equipoise.ranking.metrics import calibration_curve, slice_metrics, task_metrics
from equipoise.ranking.predictions import predictions, scores
from equipoise.schema import Schema
from equipoise.training.faults.non_finite import NonFiniteError
from equipoise.training.learner import Learner
from equipoise.training.record import NON_FINITE_REMEDY, TrainingRecord
from equipoise.training.run import CurvePoint, Run, Slice

__all__ = ["evaluate", "finish", "measure", "predict", "random_rows"]

_EVALUATION_BATCH = 16_384
_USER_GROUPS = 32
_SUBSET_SEED = 0
_OF_CURVE: Final = ("auc", "gauc", "ne", "rmse")

Metrics = dict[str, dict[str, float]]


def random_rows(split: AnySplit, most: int) -> AnySplit:
    """Return at most that many rows of a split, the same ones for every method and seed."""
    if len(split) <= most:
        return split
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(_SUBSET_SEED))[:most]
    return split.take(rows)


def _diverged(run: Run) -> NonFiniteError:
    run.status = "diverged"
    return NonFiniteError(f"A prediction is not finite after step {run.steps}: {NON_FINITE_REMEDY}", run)


def predict(learner: Learner, split: AnySplit) -> list[Tensor] | None:
    """Return the outputs of each task on a whole split, on the CPU; None if one of them is not finite."""
    parts = []
    for batch in split.batches(_EVALUATION_BATCH):
        rows = learner.world.share(len(batch.labels))
        found = learner.logits(batch[rows].to(learner.device))
        if learner.world.size > 1:
            everywhere = found.new_zeros(len(batch.labels), found.shape[1])
            everywhere[rows] = found
            dist.all_reduce(everywhere)
            found = everywhere
        parts.append(found.cpu())
    outputs = torch.cat(parts)
    return list(outputs.unbind(1)) if bool(outputs.isfinite().all()) else None


def evaluate(record: TrainingRecord, learner: Learner, split: AnySplit, batch_size: int, *, group: str = "") -> None:
    """Add a point to the learning curve."""
    record.refuse_non_finite()
    schema, step = learner.schema, record.steps
    outputs = predict(learner, split)
    metrics = {} if outputs is None else measure(schema, split, outputs, group=group)
    losses = record.close_window(learner)
    record.run.curve.append(_point(schema, step, batch_size, losses, metrics))
    if outputs is None:
        raise _diverged(record.run)
    record.note_evaluation(metrics, learner)
    learner.note_validation(metrics)


def measure(
    schema: Schema, split: AnySplit, outputs: list[Tensor], *, group: str = "", natural: bool = False
) -> Metrics:
    """Return the metrics of each task, from the outputs for all rows of a split.

    Args:
        group: the key by which AUC is grouped; none if empty.
        natural: as at the natural rate, by the weight of the rows and with corrected predictions.
    """
    weight, groups = _weight(split, natural=natural), split.keys[group] if group else None
    return task_metrics(schema, outputs, split.labels, weight, groups, natural=natural)


def finish(run: Run, learner: Learner, dataset: Dataset, batch_size: int) -> None:
    """Evaluate on the whole validation and test splits, and complete the run."""
    run.examples_per_second = run.steps * batch_size / run.seconds if run.seconds else math.nan
    if learner.device.type == "cuda":
        run.peak_memory_bytes = torch.cuda.max_memory_allocated(learner.device)
    schema, test, group = dataset.schema, dataset.test, dataset.group
    validation_outputs, test_outputs = predict(learner, dataset.validation), predict(learner, test)
    if validation_outputs is None or test_outputs is None:
        raise _diverged(run)
    run.validation = measure(schema, dataset.validation, validation_outputs, group=group)
    run.test = measure(schema, test, test_outputs, group=group)
    run.calibration = _calibration(schema, test, test_outputs, natural=False)
    run.slices = {column: _slices(dataset, column, test_outputs) for column in dataset.slices}
    if group:
        run.random_groups = _random_groups(schema, test, test_outputs, test.keys[group])
    if bool((test.weight != 1).any()):
        run.test_natural = measure(schema, test, test_outputs, group=group, natural=True)
        run.calibration_natural = _calibration(schema, test, test_outputs, natural=True)


def _weight(split: AnySplit, *, natural: bool) -> Tensor | None:
    """Return what the rows count in metrics; None: 1 each."""
    if not natural:
        return split.importance
    return split.weight if split.importance is None else split.weight * split.importance


def _calibration(
    schema: Schema, split: AnySplit, outputs: list[Tensor], *, natural: bool
) -> dict[str, list[dict[str, float]]]:
    predicted = predictions(outputs, schema if natural else replace(schema, sampled=None))
    weight = _weight(split, natural=natural)
    return {
        task: [_short(part) for part in calibration_curve(found, labels, weight)]
        for task, found, labels in zip(schema.task_names, predicted, split.labels.unbind(1), strict=True)
    }


def _random_groups(
    schema: Schema, split: AnySplit, outputs: list[Tensor], users: Tensor
) -> dict[str, dict[str, list[float]]]:
    """Return, for each binary task, sums of log loss, rows and positives over random groups of users.

    Groups of a few hundred users vary as single users do, and take little room.
    """
    places = torch.unique(users, return_inverse=True)[1]
    count = int(places.max()) + 1
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(_SUBSET_SEED))
    groups = shuffled[places] % min(_USER_GROUPS, count)
    rows = _weight(split, natural=False)
    logits = scores([output.double() for output in outputs], replace(schema, sampled=None))
    found = {}
    for task, logit, labels in zip(schema.tasks, logits, split.labels.unbind(1), strict=True):
        if not task.binary:
            continue
        here = labels >= 0  # NaN and −1 are missing
        label = labels[here].double()
        weight = torch.ones_like(label) if rows is None else rows[here].double()
        losses = functional.binary_cross_entropy_with_logits(logit[here], label, reduction="none")
        sums = {"loss": losses * weight, "weight": weight, "positives": label * weight}
        found[task.name] = {
            name: [float(f"{total:.6g}") for total in torch.bincount(groups[here], values, minlength=_USER_GROUPS)]
            for name, values in sums.items()
        }
    return found


def _slices(dataset: Dataset, column: str, outputs: list[Tensor]) -> list[Slice]:
    split, schema = dataset.test, dataset.schema
    codes = split.keys.get(column)
    if codes is None:
        place = schema.categorical_columns.index(column)
        codes = torch.cat([batch.categorical[:, place] for batch in split.batches(_EVALUATION_BATCH)])
    names = dataset.values.get(column, ())
    found = slice_metrics(schema, outputs, split.labels, codes, _weight(split, natural=False), names=names)
    return [
        {
            "value": part["value"], "values": part["values"], "rows": part["rows"],
            "tasks": {task: _short(metrics) for task, metrics in part["tasks"].items()},
        }
        for part in found
    ]  # fmt: skip


def _short(values: Mapping[str, float]) -> dict[str, float]:
    """Round to six digits: a record of many small numbers stays small."""
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def _point(schema: Schema, step: int, batch_size: int, losses: list[float], metrics: Metrics) -> CurvePoint:
    return {
        "step": step,
        "examples": step * batch_size,
        "train_loss": dict(zip(schema.task_names, losses, strict=True)),
        "validation": {
            task: {name: value for name, value in found.items() if name in _OF_CURVE} for task, found in metrics.items()
        },
    }
