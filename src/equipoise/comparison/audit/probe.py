"""A look at the tasks' gradients of the shared parameters while equal weights train."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from equipoise.data import Dataset
from equipoise.methods import METHODS
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import partition_of
from equipoise.schema import Batch
from equipoise.settings import TrainingSettings
from equipoise.training import Learner, count_steps
from equipoise.training.evaluation import random_rows

__all__ = ["Probe", "probe"]

_ROWS: Final = 16_384  # of the train split, over which each gradient is taken
_POINTS: Final = 12


class Probe(BaseModel):
    """The tasks' gradients of the shared parameters after some steps of training with equal weights.

    Attributes:
        step: the number of steps made before.
        lengths: task -> the length of its gradient over 16,384 train rows.
        cosines: the cosines between the gradients of the tasks, in their order; 0 where one of them is zero.
        update: the cosine between Adam's update of the next step and the gradient of the summed losses of its batch.
        helped: task -> the cosine between that update and the task's gradient: below 0, the step raises its loss.
    """

    step: int
    lengths: dict[str, float]
    cosines: list[list[float]]
    update: float
    helped: dict[str, float]


def probe(
    dataset: Dataset, settings: TrainingSettings, /, *, on_point: Callable[[int, int], None] = lambda *_: None
) -> list[Probe]:
    """Train with equal weights, and look at the tasks' gradients at twelve points, the first before any step.

    Args:
        on_point: called with the number of points done and that of all.

    Raises:
        SettingError: a setting does not fit the data set or the model.
    """
    settings = settings.suited_to(dataset)
    epochs, batch_size = settings.steps_per
    total = count_steps(dataset, epochs=epochs, batch_size=batch_size)
    learner = Learner(dataset.schema, METHODS["equal"], settings, total_steps=total)
    model = learner.model().models[0]
    shared = [p for p in partition_of(model, dataset.schema).shared_parameters(model) if p.requires_grad]
    rows = random_rows(dataset.train, _ROWS)
    sample = next(iter(rows.batches(len(rows)))).to(learner.device)
    points = sorted({round(place * (total - 1) / (_POINTS - 1)) for place in range(_POINTS)})
    found: list[Probe] = []
    for step, of_step in enumerate(_batches(dataset, settings.seed, epochs, batch_size)):
        batch = of_step.to(learner.device)
        if step not in points:
            learner.step(batch)
            continue
        gradients = _gradients(model, dataset, sample, shared)
        before = [parameter.detach().clone() for parameter in shared]
        learner.step(batch)
        update = [old - new.detach() for old, new in zip(before, shared, strict=True)]
        joint = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in shared]
        found.append(_reading(dataset.schema.task_names, step, gradients, update, joint))
        on_point(len(found), len(points))
    return found


def _batches(dataset: Dataset, seed: int, epochs: int, batch_size: int) -> Iterator[Batch]:
    for epoch in range(epochs):
        yield from dataset.train.batches(batch_size, generator=torch.Generator().manual_seed(seed + epoch))


def _gradients(model: nn.Module, dataset: Dataset, sample: Batch, shared: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the gradient of each task's loss over the sample, with the model in evaluation mode."""
    model.eval()
    outputs = model(sample.categorical, sample.numeric)
    losses = task_losses(outputs, sample.labels, dataset.schema.tasks, importance=sample.importance)
    found = []
    for loss in losses:
        parts = torch.autograd.grad(loss, shared, allow_unused=True, retain_graph=True)
        found.append([torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(shared, parts, strict=True)])
    model.train()
    return found


def _reading(
    names: Sequence[str],
    step: int,
    gradients: Sequence[Sequence[Tensor]],
    update: Sequence[Tensor],
    joint: Sequence[Tensor],
) -> Probe:
    gram = torch.tensor([[_dot(one, other) for other in gradients] for one in gradients], dtype=torch.float64)
    lengths = gram.diagonal().sqrt()
    cosines = (gram / (lengths[:, None] * lengths[None, :])).nan_to_num(nan=0.0)
    size = math.sqrt(_dot(update, update))
    joint_size = math.sqrt(_dot(joint, joint))
    return Probe(
        step=step,
        lengths=dict(zip(names, lengths.tolist(), strict=True)),
        cosines=cosines.tolist(),
        update=_ratio(_dot(update, joint), size * joint_size),
        helped={
            name: _ratio(_dot(update, gradient), size * length)
            for name, gradient, length in zip(names, gradients, lengths.tolist(), strict=True)
        },
    )


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return math.fsum(float((a.double() * b).sum()) for a, b in zip(one, other, strict=True))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
