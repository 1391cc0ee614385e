"""MultiBalance in TorchRec's unchanged pipeline.

torchrun --nproc-per-node 2 examples/torchrec_pipeline.py
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torchrec
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.streamable import Pipelineable

from equipoise import MultiBalance

FIELDS = ["user", "item", "place"]
ROWS, STEPS = 64, 20


@dataclass
class Examples(Pipelineable):
    """A batch, as a loader would yield it."""

    ids: torchrec.KeyedJaggedTensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Examples":
        return Examples(self.ids.to(device, non_blocking), self.labels.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        self.ids.record_stream(stream)
        self.labels.record_stream(stream)

    def pin_memory(self) -> "Examples":
        return Examples(self.ids.pin_memory(), self.labels.pin_memory())


class Towers(nn.Module):
    """All but the tables: a bottom, a fork, a tower per task."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(16 * len(FIELDS), 32), nn.ReLU())
        self.fork = MultiBalance(["click", "buy"])  # + the line that equipoise adds
        self.towers = nn.ModuleList(nn.Linear(32, 1) for _ in range(2))

    def forward(self, embedded: Tensor) -> Tensor:
        branches = self.fork(self.bottom(embedded))  # + and the one that it changes
        return torch.cat([tower(branch) for tower, branch in zip(self.towers, branches, strict=True)], dim=1)


class Ranker(nn.Module):
    """Returns the loss first, as the pipeline expects; its tracer wants the tables outside of modules with loops."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = torchrec.EmbeddingBagCollection(
            tables=[
                torchrec.EmbeddingBagConfig(name=name, embedding_dim=16, num_embeddings=1000, feature_names=[name])
                for name in FIELDS
            ]
        )
        self.dense = Towers()

    def forward(self, batch: Examples) -> tuple[Tensor, Tensor]:
        logits = self.dense(self.tables(batch.ids).values())
        losses = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").mean(0)
        return losses.sum(), losses.detach()


def batches(rank: int) -> Iterator[Examples]:
    generator = torch.Generator().manual_seed(rank)
    for _ in range(STEPS):
        ids = torch.randint(1000, (len(FIELDS), ROWS), generator=generator)
        labels = torch.stack([(ids[0] + ids[1]) % 3 == 0, ids[0] % 10 == 0], dim=1).float()
        lengths = torch.ones(len(FIELDS) * ROWS, dtype=torch.int32)
        yield Examples(torchrec.KeyedJaggedTensor(FIELDS, ids.reshape(-1), lengths=lengths), labels)


def sharded(model: Ranker, device: torch.device) -> DistributedModelParallel:
    apply_optimizer_in_backward(torch.optim.Adagrad, model.tables.parameters(), {"lr": 0.05})
    ranks = dist.get_world_size()
    plan = construct_module_sharding_plan(
        model.tables,
        {name: table_wise(rank=place % ranks) for place, name in enumerate(FIELDS)},
        local_size=ranks,
        world_size=ranks,
        device_type=device.type,
    )
    return DistributedModelParallel(
        model, device=device, plan=ShardingPlan({"tables": plan}), sharders=[EmbeddingBagCollectionSharder()]
    )


def main() -> None:
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo")
    torch.manual_seed(0)
    model = sharded(Ranker(), device)
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    optimizer = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adagrad(parameters, lr=0.05))
    pipeline = TrainPipelineSparseDist(model, optimizer, device)
    stream = batches(dist.get_rank())
    losses = [pipeline.progress(stream) for _ in range(STEPS)]
    if dist.get_rank() == 0:
        first, last = losses[0].tolist(), losses[-1].tolist()
        print(f"losses {first} -> {last}; weights at the fork {model.module.dense.fork.last_weights.tolist()}")
    dist.barrier()  # gloo's threads now and then abort a process that ends at once
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
