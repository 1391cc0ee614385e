"""NextRec: its `ShareBottom`, compiled and fitted to a pandas frame."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
from nextrec.basic.features import DenseFeature, SparseFeature
from nextrec.models.multitask.share_bottom import ShareBottom
from torch.utils.data import DataLoader

from neighbours.workload import Clock, Contender, Epoch, Workload


class TimedDataLoader(DataLoader[Any]):
    """A loader that measures its pass: `fit` takes no other class."""

    def __init__(self, loader: DataLoader[Any], clock: Clock) -> None:
        super().__init__(loader.dataset, loader.batch_size, shuffle=True, collate_fn=loader.collate_fn)
        self.clock = clock

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self.clock.around(super().__iter__())


def epoch(workload: Workload, *, balancing: str | None) -> Epoch:
    """Train by a loss weighting, or by the plain sum, for one epoch."""
    targets = list(workload.labels)
    model = ShareBottom(
        dense_features=[DenseFeature(name) for name in workload.numeric],
        sparse_features=[
            SparseFeature(name, size, embedding_dim=workload.dimension) for name, size in workload.cardinalities.items()
        ],
        sequence_features=[],
        bottom_mlp_params={"hidden_dims": list(workload.bottom)},
        tower_mlp_params_list=[{"hidden_dims": list(workload.tower)} for _ in targets],
        target=targets,
        task=["binary"] * len(targets),
    )
    model.max_gradient_norm = None  # no other library that can do without clips gradients here
    model.compile(
        optimizer="adam",
        optimizer_params={"lr": workload.rate},
        loss="bce",
        loss_weights=None if balancing is None else {"method": balancing},
        ignore_label=None,
    )
    rows = pd.DataFrame({**workload.categorical, **workload.numeric, **workload.labels})
    clock = Clock()
    loader = TimedDataLoader(model.prepare_data_loader(rows, batch_size=workload.batch), clock)
    model.fit(
        loader, metrics=["auc"], epochs=1, batch_size=workload.batch, early_stop_patience=0, use_tensorboard=False
    )
    return clock.epoch(model)


CONTENDERS: dict[str, Contender] = {
    "plain sum": partial(epoch, balancing=None),
    "GradNorm": partial(epoch, balancing="grad_norm"),
}
