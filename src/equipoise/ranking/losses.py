"""One loss per task, over the rows that have its label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from equipoise.ranking.labels import targets_and_present

__all__ = ["task_losses"]


def task_losses(logits: Sequence[Tensor], labels: Tensor, /, *, labelled: Tensor | None = None) -> list[Tensor]:
    """Return the mean binary cross entropy of every task over the rows that have its label.

    No loss depends on another task's logits, not even by a zero, so each can be differentiated alone. A task
    without any label in the batch has a loss of exactly zero with gradients of exactly zero (where its logits
    are finite): every parameter gets a gradient in every step, as DistributedDataParallel expects. Half precision
    logits and labels are widened to float32 first.

    A label that is not 0, 1 or missing makes its task's loss NaN: raising an error would wait for the device in every
    step. :meth:`equipoise.schema.Batch.check` names the column and the value.

    Args:
        logits: one tensor of shape [B] per task.
        labels: 0, 1, or NaN or −1 where missing; floating point, whole numbers or booleans, shape [B, number of
            tasks].
        labelled: the number of rows to divide each task's sum by, shape [number of tasks]; if None, the rows of
            ``labels`` that have its label. One rank of W passes 1/W of the number in the global batch, so that the
            mean over the ranks is the loss of the global batch.

    Returns:
        One scalar per task, in nats.

    Raises:
        ValueError: the number of tasks or of rows differs between logits and labels, or labels are complex.

    Example:
        >>> labels = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
        >>> task_losses((torch.zeros(2), torch.zeros(2)), labels)
        [tensor(0.6931), tensor(0.)]
    """
    shapes = [tuple(logit.shape) for logit in logits]
    if labels.ndim != 2 or shapes != [tuple(labels.shape[:1])] * labels.shape[1]:
        raise ValueError(
            "Expected one logit tensor of shape [B] per task and labels of shape [B, number of tasks], found "
            f"logits of shapes {shapes} and labels of shape {tuple(labels.shape)}."
        )
    # Labels carry no gradient, so what concerns them is done for all tasks at once. The mask becomes the
    # weight of a weighted sum, 1 / (number of labels) or 0: no division by zero, and no selection of rows,
    # which would need a host sync.
    targets, present = targets_and_present(labels)
    there = present.to(targets.dtype)
    counts = there.sum(0).clamp_(min=1) if labelled is None else labelled
    weights = (there / counts).unbind(1)
    return [
        functional.binary_cross_entropy_with_logits(
            logit.to(torch.promote_types(logit.dtype, target.dtype)), target, weight, reduction="sum"
        )
        for logit, target, weight in zip(logits, targets.unbind(1), weights, strict=True)
    ]
