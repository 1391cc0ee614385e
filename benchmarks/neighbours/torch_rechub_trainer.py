"""torch-rechub: its `SharedBottom`, `DataGenerator` and `MTLTrainer`.

Its `MLP` always normalises batches. No other library does so here, so these layers are taken out of the model.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import nn
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import SharedBottom
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator

from neighbours.workload import Clock, Contender, Epoch, TimedLoader, Workload


def without_normalisation(module: nn.Module) -> None:
    """Replace every batch normalisation by nothing."""
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm1d):
            setattr(module, name, nn.Identity())
        else:
            without_normalisation(part)


def epoch(workload: Workload, *, balancing: str | None) -> Epoch:
    """Train by one of the trainer's adaptive losses, or by the plain sum, for one epoch."""
    sparse = [SparseFeature(name, size, workload.dimension) for name, size in workload.cardinalities.items()]
    model = SharedBottom(
        [*sparse, *(DenseFeature(name) for name in workload.numeric)],
        ["classification"] * workload.tasks,
        {"dims": list(workload.bottom)},
        [{"dims": list(workload.tower)} for _ in range(workload.tasks)],
    )
    without_normalisation(model)
    trainer = MTLTrainer(
        model,
        ["classification"] * workload.tasks,
        optimizer_params={"lr": workload.rate},
        adaptive_params=None if balancing is None else {"method": balancing},
    )
    x, y = {**workload.categorical, **workload.numeric}, np.stack(list(workload.labels.values()), axis=1)
    few = {name: column[: workload.batch] for name, column in x.items()}, y[: workload.batch]
    loader, _, _ = DataGenerator(x, y).generate_dataloader(*few, *few, batch_size=workload.batch)
    clock = Clock()
    trainer.train_one_epoch(TimedLoader(loader, clock))
    return clock.epoch(model)


CONTENDERS: dict[str, Contender] = {
    "plain sum": partial(epoch, balancing=None),
    "UWL": partial(epoch, balancing="uwl"),
    "GradNorm": partial(epoch, balancing="gradnorm"),
    "MetaBalance": partial(epoch, balancing="metabalance"),
}
