"""Autocast and GradScaler: the fork keeps its statistics in float32 and in the units of the unscaled losses."""

import torch

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses


def train(fork: torch.nn.Module | None, *, enabled: bool = True) -> Ranker:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Ranker(fork).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, enabled=enabled)
    for ids, labels in batches():
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16, enabled=enabled):
            loss = task_losses(model(ids.to(device)), labels.to(device)).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return model


if __name__ == "__main__":
    balanced = train(MultiBalance(["click", "buy"]))  # + instead of train(None)
    print("weights at the fork:", balanced.fork.last_weights.tolist())
