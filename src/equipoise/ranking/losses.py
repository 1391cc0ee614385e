"""One loss per task, over the rows that have its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from equipoise.ranking.labels import targets_and_present
from equipoise.schema import Task

__all__ = ["labelled_rows", "standardised", "task_losses"]


def task_losses(
    outputs: Sequence[Tensor],
    labels: Tensor,
    tasks: Sequence[Task],
    /,
    *,
    labelled: Tensor | None = None,
    importance: Tensor | None = None,
    auxiliary: Mapping[str, Tensor] | None = None,
) -> list[Tensor]:
    """Return the mean loss of every task over the rows that have its label, weighted by the rows' importance.

    A row's loss is, for an output o and a label y:

    - binary: the cross entropy of y and the probability σ(o), times ``positive_weight`` where y is 1;
    - squared: (o − z)², where z is the standardised label, (y − mean) / scale;
    - log: the same, with log(1 + y) in the place of y;
    - huber: (o − z)² / 2 where \\|o − z\\| is at most 1, and \\|o − z\\| − 1/2 beyond.

    No loss depends on another task's output, not even by a zero, so each can be differentiated alone. A task
    without any label in the batch has a loss of exactly zero with gradients of exactly zero (where its outputs
    are finite): every parameter gets a gradient in every step, as DistributedDataParallel expects. Half precision
    outputs and labels are widened to float32 first.

    A label that its task does not allow makes its loss NaN: another one than 0, 1 or missing, an infinite one, or one
    of −1 and below under the loss "log". Raising an error would wait for the device in every step;
    :meth:`equipoise.schema.Batch.check` names the column and the value.

    Args:
        outputs: one tensor of shape [B] per task: logits, or standardised targets of regressions.
        labels: of binary tasks 0, 1, or NaN or −1 where missing; of regressions numbers, or NaN where missing;
            floating point, whole numbers or booleans, shape [B, number of tasks].
        tasks: the kind of each task and of its loss.
        labelled: what to divide each task's sum by, shape [number of tasks]; if None, :func:`labelled_rows` of these
            rows. One rank of W passes 1/W of that of the global batch, so that the mean over the ranks is the loss of
            the global batch.
        importance: what each row counts, shape [B]; None: 1 each.
        auxiliary: by a task's name a further loss of each row, shape [B], see
            :meth:`equipoise.ranking.models.RankingModel.auxiliary_losses`. It is added to the task's own in the rows
            that have its label.

    Returns:
        One scalar per task; of a binary task in nats.

    Raises:
        ValueError: the number of tasks or of rows differs between the arguments, or labels are complex.

    Example:
        >>> labels = torch.tensor([[1.0, 90.0], [0.0, float("nan")]])
        >>> tasks = [Task("click"), Task("seconds", kind="regression", mean=60.0, scale=20.0)]
        >>> task_losses((torch.zeros(2), torch.ones(2)), labels, tasks)
        [tensor(0.6931), tensor(0.2500)]
    """
    shapes = [tuple(output.shape) for output in outputs]
    if labels.ndim != 2 or shapes != [tuple(labels.shape[:1])] * labels.shape[1] or len(tasks) != len(shapes):
        raise ValueError(
            "Expected one tensor of outputs of shape [B] per task and labels of shape [B, number of tasks], found "
            f"{len(tasks)} tasks, outputs of shapes {shapes} and labels of shape {tuple(labels.shape)}."
        )
    targets, there = _targets_and_weights(labels, tasks, importance)
    # The mask becomes the weight of a weighted sum, 1 / (number of labels) or 0: no division by zero, and no selection
    # of rows, which would need a host sync.
    weights = (there / (_divisors(there) if labelled is None else labelled)).unbind(1)
    losses = [
        _loss(output.to(torch.promote_types(output.dtype, target.dtype)), target, weight, task)
        for output, target, weight, task in zip(outputs, targets.unbind(1), weights, tasks, strict=True)
    ]
    further = auxiliary or {}
    return [
        loss + (further[task.name] * weight).sum() if task.name in further else loss
        for loss, weight, task in zip(losses, weights, tasks, strict=True)
    ]


def labelled_rows(labels: Tensor, tasks: Sequence[Task], /, *, importance: Tensor | None = None) -> Tensor:
    """Return the sum of the importance of the rows that have each task's label, shape [number of tasks].

    It is what the mean of a loss divides by: 1 where no row counts, so that the loss is 0.

    Args:
        labels: as for :func:`task_losses`.
        tasks: as there.
        importance: as there.

    Example:
        >>> labels = torch.tensor([[1.0, torch.nan], [0.0, torch.nan]])
        >>> labelled_rows(labels, [Task("click"), Task("buy")], importance=torch.tensor([2.0, 0.5]))
        tensor([2.5000, 1.0000])
    """
    return _divisors(_targets_and_weights(labels, tasks, importance)[1])


def standardised(labels: Tensor, task: Task, /) -> Tensor:
    """Return labels of a regression in the unit of a model's output, any shape: with mean 0 and scale 1.

    Example:
        >>> standardised(torch.tensor([90.0]), Task("seconds", kind="regression", mean=60.0, scale=20.0))
        tensor([1.5000])
    """
    values = labels.log1p() if task.loss == "log" else labels
    return (values - task.mean) / task.scale


def _targets_and_weights(labels: Tensor, tasks: Sequence[Task], importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return targets, and what each row counts for each task: 0 where the label is missing; both [B, tasks].

    Labels carry no gradient, so tasks of one kind are done at once.
    """
    targets, present = targets_and_present(labels)
    if not all(task.binary for task in tasks):
        numbers, known = targets_and_present(labels, binary=False)
        columns = [
            (targets[:, place], present[:, place]) if task.binary else (numbers[:, place], known[:, place])
            for place, task in enumerate(tasks)
        ]
        targets, present = (torch.stack(part, dim=1) for part in zip(*columns, strict=True))
    there = present.to(targets.dtype)
    return targets, there if importance is None else there * importance.to(targets.dtype)[:, None]


def _divisors(there: Tensor) -> Tensor:
    total = there.sum(0)
    return total.masked_fill_(total == 0, 1)


def _loss(output: Tensor, target: Tensor, weight: Tensor, task: Task) -> Tensor:
    """Return the weighted sum of the rows' losses."""
    if task.binary:
        positive = None if task.positive_weight == 1 else output.new_full((), task.positive_weight)
        return functional.binary_cross_entropy_with_logits(output, target, weight, reduction="sum", pos_weight=positive)
    # infinite where the logarithm is not defined: NaN, as any label that is not allowed
    wanted = standardised(target, task)
    wanted = wanted.masked_fill(wanted - wanted != 0, torch.nan)
    measure = functional.huber_loss if task.loss == "huber" else functional.mse_loss
    return (measure(output, wanted, reduction="none") * weight).sum()
