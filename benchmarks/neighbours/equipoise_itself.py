"""equipoise: `train`, on rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch

from equipoise.data import Split
from equipoise.schema import Batch
from equipoise.training import train
from neighbours.workload import Clock, Contender, Epoch, Workload


@dataclass(frozen=True)
class TimedSplit(Split):
    """A split that starts a clock when its shuffled pass begins."""

    clock: Clock = field(default_factory=Clock)

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None, skip: int = 0) -> Iterator[Batch]:
        """See :meth:`Split.batches`."""
        self.clock.start()
        yield from super().batches(batch_size, generator=generator, skip=skip)


def epoch(workload: Workload, *, method: str = "equal", sparse: bool = False, **settings: Any) -> Epoch:
    """Train by a method for one epoch.

    Args:
        sparse: give the embedding table sparse gradients.
        settings: of the training.
    """
    clock = Clock()
    columns: dict[str, Any] = {
        column.name: getattr(workload.dataset.train, column.name) for column in fields(workload.dataset.train)
    }
    dataset = replace(workload.dataset, train=TimedSplit(**columns, clock=clock))
    models: list[torch.nn.Module] = []
    options = {
        "embedding_dim": workload.dimension, "bottom": list(workload.bottom), "tower": list(workload.tower),
        "sparse": sparse,
    }  # fmt: skip
    train(
        dataset, method, model="shared-bottom", model_options=options, lr=workload.rate, epochs=1, evaluations=1,
        batch_size=workload.batch, on_trained=models.append, on_step=lambda *_: clock.stop(), **settings,
    )  # fmt: skip
    return clock.epoch(models[0])


CONTENDERS: dict[str, Contender] = {
    "plain sum": epoch,
    "MultiBalance": partial(epoch, method="multibalance"),
    "PUB": partial(epoch, method="pub"),
    "plain sum, Adam not fused": partial(epoch, optimizer_options={"fused": False}),
    "plain sum, row-wise Adagrad for the table": partial(epoch, sparse=True, table_optimizer="rowwise-adagrad"),
}
