"""Clippy around sharded parameters (FSDP2) is saved and loaded whole by torch.distributed.checkpoint."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from equipoise.optim import Clippy
from tests.gloo_end import end_rank


def make() -> tuple[nn.Module, Clippy]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    return net, Clippy(torch.optim.Adam(net.parameters(), lr=0.1))


def train(net: nn.Module, optimizer: Clippy, rank: int, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(2 * step + rank))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def goes_on(rank: int, folder: Path, flat: bool) -> bool:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net, optimizer = make()
    train(net, optimizer, rank, range(3))
    optimizer.zero_grad()
    dcp.save({"optimizer": get_optimizer_state_dict(net, optimizer, options=options)}, checkpoint_id=folder)
    other, resumed = make()
    with torch.no_grad():
        for p, q in zip(other.parameters(), net.parameters(), strict=True):
            p.copy_(q)
    state = {"optimizer": get_optimizer_state_dict(other, resumed, options=options)}
    dcp.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(other, resumed, state["optimizer"], options=options)
    train(net, optimizer, rank, range(3, 6))
    train(other, resumed, rank, range(3, 6))
    return all(
        torch.equal(p.to_local(), q.to_local()) for p, q in zip(net.parameters(), other.parameters(), strict=True)
    )


def work(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )  # fmt: skip
    torch.set_num_threads(1)
    found = {flat: goes_on(rank, folder / f"flat-{flat}", flat) for flat in (False, True)}
    torch.save(found, folder / f"rank{rank}.pt")
    end_rank()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, args=(folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("flat", [False, True])
def test_a_sharded_training_goes_on_as_it_would_have(ranks, flat):
    assert all(found[flat] for found in ranks)
