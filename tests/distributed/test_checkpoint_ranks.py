"""A checkpoint that four ranks wrote loads on one, two and eight, whole tensors and sharded ones."""

import datetime
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from equipoise.training.checkpoint import load_checkpoint, save_checkpoint

TABLE = torch.arange(60.0).reshape(20, 3)
SETTINGS = {"seed": "3"}


def state(value: torch.Tensor) -> dict:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        "whole": value[0].clone(),
        "sharded": {"table": distribute_tensor(value.clone(), mesh, [Shard(0)])},
        "step": 7,
    }


def work(rank: int, ranks: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=(folder / f"rendezvous{ranks}").as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=120),
    )
    torch.set_num_threads(1)
    if ranks == 4:
        save_checkpoint(folder / "checkpoint", 7, SETTINGS, state(TABLE))
    else:
        found = load_checkpoint(folder / "checkpoint", SETTINGS, state(torch.zeros_like(TABLE)))
        table = found["sharded"]["table"]
        assert table.to_local().shape[0] < len(TABLE) or ranks == 1
        torch.save((found["whole"], table.full_tensor(), found["step"]), folder / f"{ranks}-{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads, which the device mesh keeps alive, now and then abort an orderly end


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for ranks in (4, 2, 8):
        mp.spawn(work, args=(ranks, folder), nprocs=ranks)
    return folder


def test_four_ranks_leave_one_complete_checkpoint(folder):
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["step-7"]


@pytest.mark.parametrize("ranks", [2, 8])
def test_more_and_fewer_ranks_load_it(folder, ranks):
    for rank in range(ranks):
        whole, table, step = torch.load(folder / f"{ranks}-{rank}.pt")
        assert torch.equal(whole, TABLE[0])
        assert torch.equal(table, TABLE)
        assert step == 7


def test_a_single_process_without_a_group_loads_it(folder):
    found = load_checkpoint(folder / "checkpoint", SETTINGS)
    assert torch.equal(found["sharded"]["table"], TABLE)
    assert torch.equal(found["whole"], TABLE[0])
