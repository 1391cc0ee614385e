"""PUB in a plain PyTorch loop: the optimizer is wrapped, and takes the tasks' losses one by one."""

import torch

from equipoise import PUB
from ranker import Ranker, batches, task_losses


def balanced(model: Ranker, data_parallel: torch.nn.Module | None = None) -> PUB:
    """Adam with balanced updates of the table and the bottom; on several ranks with the module around the model."""
    shared = [*model.table.parameters(), *model.bottom.parameters()]
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    return PUB(adam, shared=shared, tasks=["click", "buy"], data_parallel=data_parallel)


def train() -> tuple[Ranker, PUB]:
    torch.manual_seed(0)
    model = Ranker(fork=None)
    optimizer = balanced(model)
    for ids, labels in batches():
        optimizer.zero_grad()
        optimizer.backward(task_losses(model(ids), labels))
        optimizer.step()
    return model, optimizer


if __name__ == "__main__":
    print("weights of the updates:", train()[1].last_weights.tolist())
