"""Hugging Face Accelerate: prepare and accelerator.backward as usual, also with gradient accumulation."""

import torch
from accelerate import Accelerator

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses


def train(fork: torch.nn.Module | None) -> Ranker:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = Ranker(fork)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=1e-2), batches())
    for ids, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(task_losses(model(ids), labels).sum())
        optimizer.step()
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    balanced = train(MultiBalance(["click", "buy"]))  # + instead of train(None)
    print("weights at the fork:", balanced.fork.last_weights.tolist())
