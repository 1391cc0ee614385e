"""Gradient accumulation: each micro-batch is balanced by itself and counts as one observation of the average."""

import torch

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses

MICRO_BATCHES = 4


def train(fork: torch.nn.Module | None) -> Ranker:
    torch.manual_seed(0)
    model = Ranker(fork)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for number, (ids, labels) in enumerate(batches(), start=1):
        (task_losses(model(ids), labels).sum() / MICRO_BATCHES).backward()
        if number % MICRO_BATCHES == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model


if __name__ == "__main__":
    balanced = train(MultiBalance(["click", "buy"]))  # + instead of train(None)
    print("weights at the fork:", balanced.fork.last_weights.tolist())
