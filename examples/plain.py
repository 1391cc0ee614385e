"""A plain PyTorch loop. The line that equipoise adds is marked."""

import torch

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses


def train(fork: torch.nn.Module | None) -> Ranker:
    torch.manual_seed(0)
    model = Ranker(fork)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for ids, labels in batches():
        optimizer.zero_grad()
        task_losses(model(ids), labels).sum().backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    balanced = train(MultiBalance(["click", "buy"]))  # + instead of train(None)
    print("weights at the fork:", balanced.fork.last_weights.tolist())
