"""PUB in Hugging Face Accelerate: accelerator.backward takes the optimizer's total of the losses."""

import torch
from accelerate import Accelerator

from equipoise import PUB
from pub import balanced
from ranker import Ranker, batches, task_losses


def train() -> tuple[Ranker, PUB]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = Ranker(fork=None)
    pub = balanced(model)
    model, optimizer, loader = accelerator.prepare(model, pub, batches())
    for ids, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(pub.total(task_losses(model(ids), labels)))  # instead of the losses' sum
        optimizer.step()
    return accelerator.unwrap_model(model), pub


if __name__ == "__main__":
    print("weights of the updates:", train()[1].last_weights.tolist())
