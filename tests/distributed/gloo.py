"""Runs a function on several processes that are connected by gloo."""

import datetime
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.gloo_end import end_rank


def on_ranks(ranks: int, folder: Path, work: Callable[[int], dict]) -> list[dict]:
    """Return the result of ``work(rank)`` on each rank; ``work`` must be at the top of a module."""
    # Each rank is a copy of one process that has imported the slow packages already.
    multiprocessing.set_forkserver_preload(["torchrec", "torch.distributed.fsdp", "equipoise.training"])
    mp.start_processes(_run, args=(ranks, folder, work), nprocs=ranks, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def _run(rank: int, ranks: int, folder: Path, work: Callable[[int], dict]) -> None:
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=120),
    )
    torch.set_num_threads(1)
    torch.save(work(rank), folder / f"rank{rank}.pt")
    end_rank()
