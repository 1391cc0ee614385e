"""DistributedDataParallel: the fork sums M² numbers over the ranks, and finds the weights of one process with all rows.

torchrun --nproc-per-node 2 examples/data_parallel.py
"""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses


def train(fork: torch.nn.Module | None, device: torch.device) -> Ranker:
    torch.manual_seed(0)
    model = Ranker(fork).to(device)
    # From torch 2.13, forward_sync_buffers=False saves broadcasts: the buffers of a fork are alike on all ranks.
    call = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(call.parameters(), lr=1e-2)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for ids, labels in batches():
        mine = ids[rank::ranks].to(device), labels[rank::ranks].to(device)
        optimizer.zero_grad()
        task_losses(call(mine[0]), mine[1]).sum().backward()
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
