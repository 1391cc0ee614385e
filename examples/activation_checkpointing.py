"""Activation checkpointing: recomputing activations in the backward pass does not balance a second time."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses


class CheckpointedRanker(Ranker):
    """Stores no activations of table, bottom, fork and towers between the two passes."""

    def forward(self, ids: Tensor) -> Tensor:
        return checkpoint(super().forward, ids, use_reentrant=False)


def train(fork: torch.nn.Module | None) -> Ranker:
    torch.manual_seed(0)
    model = CheckpointedRanker(fork)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for ids, labels in batches():
        optimizer.zero_grad()
        task_losses(model(ids), labels).sum().backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    balanced = train(MultiBalance(["click", "buy"]))  # + instead of train(None)
    print("weights at the fork:", balanced.fork.last_weights.tolist())
