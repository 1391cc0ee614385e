"""A model with two forks: one behind the ids, one behind the numbers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.schema import Schema


class TwoViews(nn.Module):
    """Two shared views of an example, each forked by itself; a tower per task reads its copies of both."""

    def __init__(self, schema: Schema, *, fork: Callable[[], nn.Module], width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(feature.cardinality, width) for feature in schema.categorical)
        self.ids = nn.Sequential(nn.Linear(width * len(schema.categorical), width), nn.ReLU())
        self.numbers = nn.Sequential(nn.Linear(len(schema.numeric), width), nn.ReLU())
        self.ids_fork, self.numbers_fork = fork(), fork()
        self.towers = nn.ModuleList(nn.Linear(2 * width, 1) for _ in schema.tasks)

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """One logit per example and task."""
        found = [table(ids) for table, ids in zip(self.tables, categorical.unbind(1), strict=True)]
        of_ids = self.ids_fork(self.ids(torch.cat(found, dim=1)))
        of_numbers = self.numbers_fork(self.numbers(numeric))
        return tuple(
            tower(torch.cat(copies, dim=1)).squeeze(1)
            for tower, *copies in zip(self.towers, of_ids, of_numbers, strict=True)
        )
