"""torchjd: a loop around `mtl_backward`, as its documentation shows. It brings neither models nor data pipelines.

The model is equipoise's, the pipeline PyTorch's: a `TensorDataset` and a `DataLoader`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchjd.aggregation import MGDA, Aggregator, UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward

from equipoise.ranking.models import SharedBottom
from neighbours.workload import Clock, Contender, Epoch, Workload


class Features(nn.Module):
    """Passes the shared tensor on and keeps it, because torchjd differentiates with respect to it."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.shared = torch.empty(0)

    def forward(self, shared: Tensor) -> tuple[Tensor, ...]:
        self.shared = shared
        return (shared,) * self.tasks


def epoch(workload: Workload, *, aggregator: type[Aggregator] | None) -> Epoch:
    """Train by an aggregator, or by the plain sum, for one epoch."""
    features, schema = Features(workload.tasks), workload.dataset.schema
    model = SharedBottom(
        schema, fork=lambda: features, embedding_dim=workload.dimension, bottom=workload.bottom, tower=workload.tower
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=workload.rate)
    shared = list(model.shared_parameters())
    towers = [list(model.task_parameters(task)) for task in range(workload.tasks)]
    aggregate = None if aggregator is None else aggregator()
    train = workload.dataset.train.take(slice(None))
    loader = DataLoader(
        TensorDataset(train.categorical.long(), train.numeric, train.labels), batch_size=workload.batch, shuffle=True
    )
    clock = Clock()
    for categorical, numeric, labels in clock.around(loader):
        outputs = model(categorical, numeric)
        losses = [
            functional.binary_cross_entropy_with_logits(output, label)
            for output, label in zip(outputs, labels.unbind(1), strict=True)
        ]
        optimizer.zero_grad()
        if aggregate is None:
            sum(losses).backward()  # type: ignore[union-attr]
        else:
            mtl_backward(losses, features=features.shared, tasks_params=towers, shared_params=shared)
            jac_to_grad(shared, aggregate)
        optimizer.step()
    return clock.epoch(model)


CONTENDERS: dict[str, Contender] = {
    "plain sum": partial(epoch, aggregator=None),
    "UPGrad": partial(epoch, aggregator=UPGrad),
    "MGDA": partial(epoch, aggregator=MGDA),
}
