"""The evaluation of a training: predictions on a split, metrics, the points of the learning curve, the end of a run."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.data.dataset import AnySplit, Dataset
from equipoise.ranking.metrics import TaskMetrics
from equipoise.schema import Schema
from equipoise.training.faults.non_finite import NonFiniteError
from equipoise.training.learner import Learner
from equipoise.training.record import NON_FINITE_REMEDY, TrainingRecord
from equipoise.training.run import CurvePoint, Run

__all__ = ["evaluate", "finish", "measure", "predict", "random_rows"]

_EVALUATION_BATCH = 16_384
_SUBSET_SEED = 0

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
    """Return the logits of each task on a whole split, on the CPU; None if one of them is not finite."""
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
    logits = torch.cat(parts)
    return list(logits.unbind(1)) if bool(logits.isfinite().all()) else None


def evaluate(record: TrainingRecord, learner: Learner, split: AnySplit, batch_size: int) -> None:
    """Add a point to the learning curve."""
    record.refuse_non_finite()
    schema, step = learner.schema, record.steps
    logits = predict(learner, split)
    metrics = {} if logits is None else measure(schema, split, logits)
    losses = record.close_window(learner)
    record.run.curve.append(_point(schema, step, batch_size, losses, metrics))
    if logits is None:
        raise _diverged(record.run)


def measure(schema: Schema, split: AnySplit, logits: list[Tensor], weight: Tensor | None = None) -> Metrics:
    """Return the metrics of each task, from the logits of all rows of a split."""
    metrics = TaskMetrics(schema)
    metrics.update(logits, split.labels, weight)
    return {task: {name: float(value) for name, value in found.items()} for task, found in metrics.compute().items()}


def finish(run: Run, learner: Learner, dataset: Dataset, batch_size: int) -> None:
    """Evaluate on the whole validation and test splits, and complete the run."""
    run.examples_per_second = run.steps * batch_size / run.seconds if run.seconds else math.nan
    if learner.device.type == "cuda":
        run.peak_memory_bytes = torch.cuda.max_memory_allocated(learner.device)
    schema, test = dataset.schema, dataset.test
    validation_logits, test_logits = predict(learner, dataset.validation), predict(learner, test)
    if validation_logits is None or test_logits is None:
        raise _diverged(run)
    run.validation = measure(schema, dataset.validation, validation_logits)
    run.test = measure(schema, test, test_logits)
    if bool((test.weight != 1).any()):
        run.test_natural = measure(schema, test, test_logits, test.weight)


def _point(schema: Schema, step: int, batch_size: int, losses: list[float], metrics: Metrics) -> CurvePoint:
    return {
        "step": step,
        "examples": step * batch_size,
        "train_loss": dict(zip(schema.task_names, losses, strict=True)),
        "validation": {task: {"auc": found["auc"], "ne": found["ne"]} for task, found in metrics.items()},
    }
