"""Several processes, one training: who this process is, and how a model is spread over all of them.

Only existing engines: DistributedDataParallel, FSDP2, and TorchRec's DistributedModelParallel for embedding tables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from equipoise.ranking.embedding import FeatureEmbedding
from equipoise.ranking.models import RankingModel
from equipoise.ranking.sharded_embedding import ShardableEmbedding
from equipoise.training.errors import SettingError

__all__ = [
    "Sharding",
    "World",
    "dense_parameters",
    "fused_optimizer",
    "is_sharded",
    "launched",
    "parallelize",
    "usable_device",
]

Sharding = Literal["ddp", "fsdp", "table-wise", "row-wise", "column-wise", "data-parallel", "planner"]
"""ddp: every rank holds everything; fsdp: parameters are sharded (FSDP2); the others: TorchRec, tables sharded so."""

_TIMEOUT: Final = timedelta(minutes=10)
_SMALLEST_COLUMNS: Final = 4  # FBGEMM's kernels take widths that are multiples of it


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        device: where this process trains.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a value that never changes

    def share(self, rows: int) -> slice:
        """This rank's part of a batch of so many rows."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)


@contextmanager
def launched(device: str = "cpu", *, timeout: timedelta = _TIMEOUT) -> Iterator[World]:
    """The world that ``torchrun`` has started this process in; without it, a world of one.

    Gloo connects CPUs, NCCL GPUs, of which every process takes the one of its local rank. A rank that does not answer
    within ``timeout`` ends the others with an error.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World(device=usable_device(device))
        return
    local = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if local.type == "cuda":
        torch.cuda.set_device(local)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    # Of its own for each restart of the group: in the store are still the addresses of the processes before.
    store = PrefixStore(f"restart{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(
        "nccl" if local.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=timeout
    )
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local)
    finally:
        dist.destroy_process_group()


def parallelize(
    model: nn.Module,
    sharding: Sharding = "ddp",
    *,
    device: torch.device | str = "cpu",
    table_optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]] = (torch.optim.Adagrad, {"lr": 0.01}),
) -> nn.Module:
    """The model, spread over the ranks of the default process group; call it in the place of ``model``.

    Forks need no change: their Gram matrix is summed over the ranks. Every rank must hold the same weights before.

    Args:
        model: on ``device``. For TorchRec a :class:`RankingModel`, whose embedding becomes TorchRec's with its
            weights, or any model with ``EmbeddingBagCollection`` modules.
        sharding: see :data:`Sharding`. Under ``"fsdp"`` every child of ``model`` is sharded apart; under ``"planner"``
            TorchRec chooses a sharding per table.
        table_optimizer: class and options of the optimizer that is fused into the tables' backward pass, in TorchRec's
            shardings but ``"data-parallel"``.

    Returns:
        A ``DistributedDataParallel``, a ``DistributedModelParallel``, or ``model`` itself under ``"fsdp"``.

    Raises:
        SettingError: there is no process group, or ``model`` cannot be sharded so.
    """
    if sharding not in get_args(Sharding):
        raise SettingError(f"Expected a sharding out of {', '.join(get_args(Sharding))}; found {sharding!r}.")
    if not dist.is_initialized():
        raise SettingError(
            "parallelize needs torch.distributed, which is not initialised: launch with torchrun, and call it inside "
            "`with launched():`, or after torch.distributed.init_process_group."
        )
    if sharding == "ddp":
        return DistributedDataParallel(model)
    if sharding == "fsdp":
        return _fully_sharded(model, torch.device(device))
    return _table_sharded(model, sharding, torch.device(device), table_optimizer)


def dense_parameters(module: nn.Module, /) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer is to step, by name: all that are not fused into a backward pass."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if not hasattr(parameter, "_in_backward_optimizers") and parameter.numel()
    }


def fused_optimizer(module: nn.Module, /) -> torch.optim.Optimizer | None:
    """What steps TorchRec's tables in the backward pass: its ``step`` only hands the learning rate on."""
    found: torch.optim.Optimizer | None = getattr(module, "fused_optimizer", None)
    return found if found is not None and found.param_groups else None


def is_sharded(tensor: Tensor, /) -> bool:
    """Whether it is a DTensor (FSDP2) or a ShardedTensor (TorchRec), whose modules are slow to import."""
    return hasattr(tensor, "placements") or hasattr(tensor, "local_shards")


def usable_device(name: torch.device | str, /) -> torch.device:
    """The device of this name, if PyTorch can use it here.

    Raises:
        SettingError: it is not known, not built in, or not there.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # not known; not built in or not there
        raise SettingError(f"Expected a device that PyTorch can use here, found {str(name)!r}: {error}") from error


def _fully_sharded(model: nn.Module, device: torch.device) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - slow to import
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    sparse = [name for name, part in model.named_modules() if getattr(part, "sparse", False)]
    if sparse:
        raise SettingError(f"FSDP2 cannot shard sparse gradients, found sparse=True in {', '.join(sparse)}: set False.")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for child in model.children():
        if any(True for _ in child.parameters()) and not isinstance(child, nn.ModuleList):
            fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _table_sharded(
    model: nn.Module,
    sharding: Sharding,
    device: torch.device,
    table_optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]],
) -> nn.Module:
    if isinstance(model, RankingModel) and isinstance(model.embedding, FeatureEmbedding):
        if model.embedding.table is None:
            raise SettingError(
                "TorchRec shards embedding tables, found a schema without categorical features: use ddp."
            )
        model.embedding = ShardableEmbedding(model.schema, model.embedding)
    import torchrec  # noqa: PLC0415 - an optional dependency
    from torchrec.distributed import DistributedModelParallel  # noqa: PLC0415
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: PLC0415
    from torchrec.distributed.model_parallel import DefaultDataParallelWrapper  # noqa: PLC0415
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward  # noqa: PLC0415

    tables = {name: part for name, part in model.named_modules() if isinstance(part, torchrec.EmbeddingBagCollection)}
    if not tables:
        raise SettingError(
            f"TorchRec shards EmbeddingBagCollection modules, found none in {type(model).__name__}: make its tables "
            "one, or use ddp."
        )
    values = {
        f"{name}.{key}": parameter.detach().clone()
        for name, part in tables.items()
        for key, parameter in part.named_parameters()
    }
    if sharding != "data-parallel":
        kind, options = table_optimizer
        for part in tables.values():
            apply_optimizer_in_backward(kind, part.parameters(), dict(options))
    sharder = EmbeddingBagCollectionSharder()
    wrapped: nn.Module = DistributedModelParallel(
        model,
        device=device,
        plan=_plan(model, tables, sharding, device, sharder),
        sharders=[sharder],
        # With a static graph DDP averages the first backward pass even where PUB has taken the averaging over.
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=False),
    )
    _fill(wrapped.state_dict(), values)  # TorchRec does not carry the values of CPU tables over
    return wrapped


def _plan(
    model: nn.Module, tables: Mapping[str, nn.Module], sharding: Sharding, device: torch.device, sharder: Any
) -> Any:
    from torchrec.distributed import sharding_plan as plans  # noqa: PLC0415
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology  # noqa: PLC0415
    from torchrec.distributed.types import ShardingPlan  # noqa: PLC0415

    ranks = dist.get_world_size()
    if sharding == "planner":
        # Not data-parallel tables: they have no fused optimizer.
        kinds = ["table_wise", "column_wise"] + (["row_wise", "table_row_wise"] if device.type == "cuda" else [])
        limits = {
            config.name: ParameterConstraints(sharding_types=kinds)
            for part in tables.values()
            for config in part.embedding_bag_configs()  # type: ignore[operator]
        }
        planner = EmbeddingShardingPlanner(
            topology=Topology(world_size=ranks, compute_device=device.type), constraints=limits
        )
        return planner.collective_plan(model, [sharder], dist.group.WORLD)
    modules = {}
    for name, part in tables.items():
        configs: Sequence[Any] = part.embedding_bag_configs()  # type: ignore[operator]
        per_table = {}
        for place, config in enumerate(configs):
            if sharding == "column-wise":
                if config.embedding_dim % ranks or config.embedding_dim // ranks % _SMALLEST_COLUMNS:
                    raise SettingError(
                        f"column-wise sharding cuts a table's columns into one part per rank, each a multiple of "
                        f"{_SMALLEST_COLUMNS} wide; found table {config.name!r} with {config.embedding_dim} columns "
                        f"and {ranks} ranks. Choose another embedding_dim, or table-wise or row-wise."
                    )
                per_table[config.name] = plans.column_wise(ranks=list(range(ranks)))
            elif sharding == "table-wise":
                per_table[config.name] = plans.table_wise(rank=place % ranks)
            else:
                per_table[config.name] = plans.row_wise() if sharding == "row-wise" else plans.data_parallel()
        modules[name] = plans.construct_module_sharding_plan(
            part, per_param_sharding=per_table, local_size=ranks, world_size=ranks, device_type=device.type
        )
    return ShardingPlan(plan=modules)


@torch.no_grad()
def _fill(state: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        held = state[name]
        if not is_sharded(held):
            held.copy_(value)
            continue
        for shard in held.local_shards():
            region = tuple(
                slice(start, start + size)
                for start, size in zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
            )
            shard.tensor.copy_(value[region])
