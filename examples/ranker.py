"""A ranker for the integrations' examples: two tasks, one of them rare, on made-up rows; plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Ranker(nn.Module):
    """Tables, a bottom, a fork, a tower per task; with ``fork=None`` the plain multi-task ranker."""

    def __init__(self, fork: nn.Module | None) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 8)
        self.bottom = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.fork = fork
        self.towers = nn.ModuleList(nn.Linear(32, 1) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        shared = self.bottom(self.table(ids).flatten(1))
        branches = [shared] * 2 if self.fork is None else self.fork(shared)
        return torch.cat([tower(branch) for tower, branch in zip(self.towers, branches, strict=True)], dim=1)


def task_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return one loss per task, shape [tasks]."""
    return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(0)


def batches(steps: int = 20, rows: int = 64) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(500, (steps * rows, 2), generator=generator)
    labels = torch.stack([ids.sum(1) % 3 == 0, ids[:, 0] % 20 == 0], dim=1).float()
    return DataLoader(TensorDataset(ids, labels), batch_size=rows)
