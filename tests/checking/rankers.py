"""A small ranker whose tests choose where the towers' inputs come from."""

import torch
from torch import Tensor, nn

from equipoise import MultiBalance

TASKS = ["click", "like", "buy"]


class Ranker(nn.Module):
    """Features, a shared bottom, a fork, and a tower per task; `wire` may be overridden."""

    def __init__(self, tasks=TASKS, fork=None):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.bottom = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.fork = MultiBalance(tasks) if fork is None else fork
        self.towers = nn.ModuleDict(
            {task: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)) for task in tasks}
        )

    def wire(self, z: Tensor, _: Tensor) -> list[Tensor]:
        """Return the towers' inputs, from the shared tensor and the embedding."""
        return list(self.fork(z))

    def forward(self, ids: Tensor) -> list[Tensor]:
        e = self.table(ids)
        inputs = self.wire(self.bottom(e), e)
        return [tower(x).squeeze(1) for tower, x in zip(self.towers.values(), inputs, strict=True)]


def losses_of(model: nn.Module) -> list[Tensor]:
    return [logit.square().mean() for logit in model(torch.arange(6))]
