"""Spread a model over several processes with existing engines.

They are DistributedDataParallel, FSDP2, and TorchRec's DistributedModelParallel for embedding tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from equipoise.errors import SettingError
from equipoise.forks.fork import Fork
from equipoise.ranking.embedding import FeatureEmbedding
from equipoise.ranking.sharded_embedding import ShardableEmbedding
from equipoise.settings import Sharding

__all__ = ["dense_parameters", "fused_optimizer", "is_sharded", "parallelize"]

_WIDTH_UNIT: Final = 4  # FBGEMM's kernels take widths that are multiples of it


def parallelize(
    model: nn.Module,
    sharding: Sharding = "ddp",
    *,
    device: torch.device | str = "cpu",
    table_optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]] = (torch.optim.Adagrad, {"lr": 0.01}),
) -> nn.Module:
    """Spread a model over the ranks of the default process group, and return the module to call instead of ``model``.

    Forks need no change: their Gram matrix is summed over the ranks. All ranks must hold the same weights before.

    Args:
        model: on ``device``. For TorchRec a model with :class:`FeatureEmbedding` modules, which become TorchRec's
            with their weights, or with ``EmbeddingBagCollection`` modules.
        sharding: see :data:`Sharding`. Under ``"fsdp"`` every child of ``model`` is sharded apart; under ``"planner"``
            TorchRec chooses a sharding per table; under ``"row-wise"`` a table of fewer rows than would leave every
            rank some is held by one of them. Behind ``"+fsdp"`` every child without tables is sharded apart too.
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
        return _replicated(model)
    if sharding == "fsdp":
        return _fully_sharded(model, torch.device(device))
    return _table_sharded(model, sharding, torch.device(device), table_optimizer)


def dense_parameters(module: nn.Module, /) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer must step, by name: those that no backward pass steps."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if not hasattr(parameter, "_in_backward_optimizers") and parameter.numel()
    }


def fused_optimizer(module: nn.Module, /) -> torch.optim.Optimizer | None:
    """Return the optimizer that steps TorchRec's tables in the backward pass; its ``step`` only sets the rate."""
    found: torch.optim.Optimizer | None = getattr(module, "fused_optimizer", None)
    return found if found is not None and found.param_groups else None


def is_sharded(tensor: Tensor, /) -> bool:
    """Return whether a tensor is a DTensor (FSDP2) or a ShardedTensor (TorchRec), without their slow imports."""
    return hasattr(tensor, "placements") or hasattr(tensor, "local_shards")


def _replicated(model: nn.Module) -> DistributedDataParallel:
    wrapped = DistributedDataParallel(model)
    # A fork's buffers are alike on all ranks by themselves, and constants stay so; before every forward pass they would
    # be a broadcast for each dtype. Running statistics, as of BatchNorm, do need it.
    wrapped.broadcast_buffers = any(
        buffer.is_floating_point()
        for part in model.modules()
        if not isinstance(part, Fork)
        for buffer in part.buffers(recurse=False)
    )
    return wrapped


def _fully_sharded(model: nn.Module, device: torch.device) -> nn.Module:
    sparse = [name for name, part in model.named_modules() if getattr(part, "sparse", False)]
    if sparse:
        raise SettingError(f"FSDP2 cannot shard sparse gradients, found sparse=True in {', '.join(sparse)}: set False.")
    _shard(model, device, sharded=set())
    return model


def _shard(model: nn.Module, device: torch.device, sharded: set[nn.Parameter]) -> None:
    """Shard the model and each of its children with FSDP2, but for the parameters in ``sharded`` already."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - slow to import
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for child in model.children():
        own = set(child.parameters())
        if own and not own & sharded and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=sharded)


def _table_sharded(
    model: nn.Module,
    sharding: Sharding,
    device: torch.device,
    table_optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]],
) -> nn.Module:
    for name, embedding in list(model.named_modules()):
        if isinstance(embedding, FeatureEmbedding):
            if embedding.table is None:
                raise SettingError(
                    "TorchRec shards embedding tables, found a schema without categorical features: use ddp."
                )
            parent, _, own = name.rpartition(".")
            model.get_submodule(parent).register_module(own, ShardableEmbedding(embedding))
    import torchrec  # noqa: PLC0415 - an optional dependency
    from torchrec.distributed import DistributedModelParallel  # noqa: PLC0415
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: PLC0415
    from torchrec.distributed.model_parallel import DataParallelWrapper, DefaultDataParallelWrapper  # noqa: PLC0415
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward  # noqa: PLC0415

    tables = {name: part for name, part in model.named_modules() if isinstance(part, torchrec.EmbeddingBagCollection)}
    if not tables:
        raise SettingError(
            f"TorchRec shards EmbeddingBagCollection modules, found none in {type(model).__name__}: make its tables "
            "one, or use ddp."
        )
    of_tables, _, of_dense = sharding.partition("+")
    _check_widths(tables, of_tables)
    values = {
        f"{name}.{key}": parameter.detach().clone()
        for name, part in tables.items()
        for key, parameter in part.named_parameters()
    }
    if of_tables != "data-parallel":
        kind, options = table_optimizer
        for part in tables.values():
            apply_optimizer_in_backward(kind, part.parameters(), dict(options))

    class FullySharded(DataParallelWrapper):  # type: ignore[misc]
        def wrap(self, dmp: Any, env: Any, device: torch.device) -> None:
            module = dmp.module
            held = set(DistributedModelParallel._sharded_parameter_names(module))
            _shard(module, device, {p for name, p in module.named_parameters() if name in held})

    # With a static graph DDP averages the first backward pass even where PUB has taken the averaging over.
    whole = DefaultDataParallelWrapper(static_graph=False)
    sharder = EmbeddingBagCollectionSharder()
    wrapped: nn.Module = DistributedModelParallel(
        model,
        device=device,
        plan=_plan(model, tables, of_tables, device, sharder),
        sharders=[sharder],
        data_parallel_wrapper=FullySharded() if of_dense else whole,
    )
    _fill(wrapped.state_dict(), values)  # TorchRec does not carry the values of CPU tables over
    return wrapped


def _check_widths(tables: Mapping[str, nn.Module], sharding: str) -> None:
    parts = dist.get_world_size() if sharding == "column-wise" else 1
    unit = _WIDTH_UNIT * parts
    for part in tables.values():
        for config in part.embedding_bag_configs():  # type: ignore[operator]
            if config.embedding_dim % unit:
                cut = f", and column-wise sharding cuts them into {parts} parts" if parts > 1 else ""
                raise SettingError(
                    f"TorchRec's kernels take tables whose width is a multiple of {_WIDTH_UNIT}{cut}: expected a "
                    f"multiple of {unit}, found {config.embedding_dim} in table {config.name!r}. Set embedding_dim to "
                    f"{-(-config.embedding_dim // unit) * unit}, or use ddp."
                )


def _plan(model: nn.Module, tables: Mapping[str, nn.Module], sharding: str, device: torch.device, sharder: Any) -> Any:
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
                per_table[config.name] = plans.column_wise(ranks=list(range(ranks)))
            elif sharding == "table-wise" or (sharding == "row-wise" and _leaves_ranks_out(config.num_embeddings)):
                per_table[config.name] = plans.table_wise(rank=place % ranks)
            else:
                per_table[config.name] = plans.row_wise() if sharding == "row-wise" else plans.data_parallel()
        modules[name] = plans.construct_module_sharding_plan(
            part, per_param_sharding=per_table, local_size=ranks, world_size=ranks, device_type=device.type
        )
    return ShardingPlan(plan=modules)


def _leaves_ranks_out(rows: int) -> bool:
    """Return whether a table has too few rows to give some to each rank: FBGEMM's kernels fail on empty parts."""
    ranks = dist.get_world_size()
    return (ranks - 1) * -(-rows // ranks) >= rows


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
