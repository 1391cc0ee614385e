"""torch.compile: forward and backward pass are compiled whole, including the fork."""

import torch

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses


def train(fork: torch.nn.Module | None) -> Ranker:
    torch.manual_seed(0)
    model = Ranker(fork)
    call = torch.compile(model, fullgraph=True)  # fullgraph: any break of the graph would be an error
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for ids, labels in batches():
        optimizer.zero_grad()
        task_losses(call(ids), labels).sum().backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    balanced = train(MultiBalance(["click", "buy"]))  # + instead of train(None)
    print("weights at the fork:", balanced.fork.last_weights.tolist())
