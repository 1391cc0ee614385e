"""FSDP2: parameters and optimizer state are sharded over the ranks; the fork finds the weights of one process.

torchrun --nproc-per-node 2 examples/fully_sharded.py
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses


def train(fork: torch.nn.Module | None, device: torch.device) -> Ranker:
    torch.manual_seed(0)
    model = Ranker(fork).to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (model.table, model.bottom, *model.towers, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for ids, labels in batches():
        mine = ids[rank::ranks].to(device), labels[rank::ranks].to(device)
        optimizer.zero_grad()
        task_losses(model(mine[0]), mine[1]).sum().backward()
        optimizer.step()
    return model


def main() -> None:
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo")
    balanced = train(MultiBalance(["click", "buy"]), device)  # + instead of train(None, device)
    if dist.get_rank() == 0:
        print("weights at the fork:", balanced.fork.last_weights.tolist())
    dist.barrier()  # gloo's threads now and then abort a process that ends at once
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
