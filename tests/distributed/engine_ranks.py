"""Trains integrations' examples on the two ranks that torchrun has started, each with half of every batch.

torchrun --nproc-per-node 2 engine_ranks.py FOLDER NAME ...
"""

import importlib
import os
import sys
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from equipoise import MultiBalance

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


def rows_in_turn(batches: DataLoader) -> DataLoader:
    """Every other row for every rank, in their order, which Lightning would shuffle."""
    return DataLoader(batches.dataset, batch_size=32, sampler=DistributedSampler(batches.dataset, shuffle=False))


def train(name: str) -> torch.nn.Module:
    module = importlib.import_module(name)
    batches = module.batches
    if "lightning" in name:
        module.batches = lambda: rows_in_turn(batches())
    else:  # Accelerate hands out batches in turns: two of 32 rows are one of 64
        module.batches = lambda: batches(steps=40, rows=32)
    return module.train()[0] if name.startswith("pub") else module.train(MultiBalance(["click", "buy"]))


def main() -> None:
    folder, *names = sys.argv[1:]
    dist.init_process_group("gloo")
    pl.Trainer = partial(pl.Trainer, devices=2, strategy="ddp", use_distributed_sampler=False)
    for name in names:
        model = train(name)
        if dist.get_rank() == 0:
            torch.save(model.state_dict(), Path(folder) / f"{name}.pt")
    dist.barrier()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads, of which DDP has some more, now and then abort an orderly end


if __name__ == "__main__":
    main()
