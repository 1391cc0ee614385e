"""A checkpoint that four ranks wrote loads on one, two and eight, whole tensors and sharded ones."""

import datetime
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


def sharded(value: torch.Tensor) -> dict:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {"table": distribute_tensor(value.clone(), mesh, [Shard(0)])}


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
        state = {"whole": TABLE[0].clone(), "step": 7, "momentum": sharded(TABLE + 1)["table"]}
        save_checkpoint(folder / "checkpoint", 7, SETTINGS, state, sharded(TABLE))
    else:
        parts = sharded(torch.zeros_like(TABLE))
        found = load_checkpoint(folder / "checkpoint", SETTINGS, parts)
        assert parts["table"].to_local().shape[0] < len(TABLE)
        torch.save((found, parts["table"].full_tensor()), folder / f"{ranks}-{rank}.pt")
    dist.barrier()  # gloo's threads now and then abort a process that ends at once
    dist.destroy_process_group()


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
        found, table = torch.load(folder / f"{ranks}-{rank}.pt")
        assert torch.equal(table, TABLE)
        assert_whole(found)


def test_a_single_process_without_a_group_loads_it(folder):
    table = torch.zeros_like(TABLE)
    assert_whole(load_checkpoint(folder / "checkpoint", SETTINGS, {"table": table}))
    assert torch.equal(table, TABLE)


def assert_whole(found: dict) -> None:
    assert found["step"] == 7
    assert torch.equal(found["whole"], TABLE[0])
    assert torch.equal(found["momentum"], TABLE + 1)  # sharded when it was saved, but asked for as a part of the state
