"""FuxiCTR: a shared bottom on its `MultiTaskModel`, with its embedding, its `MLP_Block` and its loader.

The package holds no multi-task model but this base class, and no way to balance tasks. Numbers go into the network as
they are, as in the other libraries, in the place of FuxiCTR's vector for each number.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel
from torch import Tensor, nn

from neighbours.workload import Clock, Contender, Epoch, TimedLoader, Workload


class SharedBottom(MultiTaskModel):  # type: ignore[misc]
    """A shared bottom and one tower per task."""

    def __init__(self, feature_map: FeatureMap, workload: Workload, folder: Path) -> None:
        tasks = workload.tasks
        super().__init__(
            feature_map, task=["binary_classification"] * tasks, num_tasks=tasks, verbose=0, metrics=["AUC"],
            model_root=str(folder), eval_steps=1 + workload.rows // workload.batch,
        )  # fmt: skip
        self.numbers = list(workload.numeric)
        self.embedding = FeatureEmbedding(
            feature_map, workload.dimension, required_feature_columns=list(workload.categorical)
        )
        inputs = workload.dimension * len(workload.categorical) + len(self.numbers)
        self.bottom = MLP_Block(inputs, list(workload.bottom))
        self.towers = nn.ModuleList(
            MLP_Block(workload.bottom[-1], list(workload.tower), output_dim=1) for _ in range(tasks)
        )
        self.compile("adam", "binary_cross_entropy", workload.rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.get_inputs(inputs)
        numbers = torch.stack([x[name].float() for name in self.numbers], dim=1)
        shared = self.bottom(torch.cat([self.embedding(x, flatten_emb=True), numbers], dim=1))
        parts = zip(self.feature_map.labels, self.towers, self.output_activation, strict=True)
        return {f"{label}_pred": activation(tower(shared)) for label, tower, activation in parts}


def epoch(workload: Workload) -> Epoch:
    """Train by the plain sum for one epoch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        np.savez(folder / "rows.npz", **workload.categorical, **workload.numeric, **workload.labels)
        specification = {
            "dataset_id": "rows",
            "labels": list(workload.labels),
            "features": [
                *({name: {"type": "categorical", "vocab_size": size}} for name, size in workload.cardinalities.items()),
                *({name: {"type": "numeric"}} for name in workload.numeric),
            ],
        }
        (folder / "features.json").write_text(json.dumps(specification))
        feature_map = FeatureMap("rows", str(folder))
        feature_map.load(str(folder / "features.json"), {"embedding_dim": workload.dimension})
        model = SharedBottom(feature_map, workload, folder)
        model.save_weights(model.checkpoint)  # `fit` ends by loading the best weights
        loader, _ = RankDataLoader(
            feature_map, "train", str(folder / "rows.npz"), batch_size=workload.batch, shuffle=True
        )
        clock = Clock()
        model.fit(TimedLoader(loader, clock), epochs=1)
    return clock.epoch(model)


CONTENDERS: dict[str, Contender] = {"plain sum": epoch}
