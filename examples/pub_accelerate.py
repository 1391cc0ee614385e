"""PUB in Hugging Face Accelerate: accelerator.backward takes the optimizer's total of the losses.

The model is prepared before the optimizer is made: on several ranks PUB must be told who trains together.
"""

import torch
from accelerate import Accelerator

from equipoise import PUB
from pub import balanced
from ranker import Ranker, batches, task_losses


def train() -> tuple[Ranker, PUB]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = Ranker(fork=None)
    call = accelerator.prepare(model)
    pub = balanced(model, call if accelerator.num_processes > 1 else None)
    optimizer, loader = accelerator.prepare(pub, batches())
    for ids, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(pub.total(task_losses(call(ids), labels)))  # instead of the losses' sum
        optimizer.step()
    return model, pub


if __name__ == "__main__":
    print("weights of the updates:", train()[1].last_weights.tolist())
