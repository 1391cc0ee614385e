"""Builds what a method trains: its models, spread over the ranks, each with its optimizer, schedule and monitor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from equipoise.forks.fork import Fork
from equipoise.loss_weighting import LossWeighting
from equipoise.methods import Method
from equipoise.monitor import Monitor
from equipoise.ranking.models import Partition, build_model, partition_of, trial_outputs
from equipoise.schema import Schema
from equipoise.settings import TrainingSettings
from equipoise.training.averaging import AveragedWeights
from equipoise.training.member import Member
from equipoise.training.optimizers import (
    build_optimizer,
    build_schedule,
    embedding_tables,
    fused_table_optimizer,
    table_rate,
)
from equipoise.training.ranks.parallel import dense_parameters, fused_optimizer, parallelize
from equipoise.training.ranks.world import World

__all__ = ["build_members"]

_LARGE = 32  # rows of a table for each row of a batch


def build_members(
    schema: Schema, method: Method, settings: TrainingSettings, world: World, /, *, total_steps: int | None
) -> list[Member]:
    """Build one model for all tasks, or one per task, from the weights that the seed gives, the same for each.

    Args:
        total_steps: see :class:`equipoise.training.Learner`.
    """
    members = []
    for place, group in enumerate(method.groups(schema.task_names)):
        lr, table_decay = method.rate_of_model(place, settings.lr, settings.table_decay)
        own = settings.model_copy(update={"lr": lr, "table_decay": table_decay})
        members.append(_build_member(method, own, group, schema=schema, world=world, steps=total_steps))
    return members


def _build_member(
    method: Method, settings: TrainingSettings, group: Sequence[str], *, schema: Schema, world: World, steps: int | None
) -> Member:
    """Build the model that learns a group of tasks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        built = build_model(settings.model, schema, fork=method.fork_factory(group), **settings.model_options)
        weighting = method.build_loss_weighting(group)  # it may draw numbers
    partition = partition_of(built, schema)
    tasks = [schema.task_names.index(task) for task in group]
    if len(tasks) < len(schema.tasks):
        _freeze_unused(built, schema, tasks, partition)
    built.to(world.device)
    module: nn.Module = built
    spread = world.size > 1 or settings.sharding != "ddp"
    on_one_cpu = not spread and world.device.type == "cpu"
    if settings.table_optimizer == "rowwise-adagrad" and on_one_cpu and settings.batch_size is not None:
        _read_large_tables_sparsely(built, settings.batch_size)
    if spread:
        fused = fused_table_optimizer(settings)
        module = parallelize(built, settings.sharding, device=world.device, table_optimizer=fused)
    dense, shared = dense_parameters(module), {id(p) for p in partition.shared_parameters(built)}
    base = build_optimizer(module, list(dense.values()), settings)
    tables = {id(table) for table in embedding_tables(module)}
    if weighting is not None and (learned := weighting.to(world.device).learned_parameters()):
        base.add_param_group({"params": learned, "weight_decay": 0.0})
    optimizer = method.build_optimizer(
        base,
        shared=[p for p in dense.values() if id(p) in shared],
        tasks=group,
        data_parallel=module if spread else None,
    )
    member = Member(
        built, module, [partition.task_parameters(built, task) for task in group],
        [p for p in dense.values() if id(p) not in tables],
        optimizer, fused_optimizer(module), table_rate(settings) / settings.lr,
        build_schedule(optimizer, settings, steps),
        tasks,
        _monitor(built, optimizer, weighting),
        weighting,
        None if settings.ema is None else AveragedWeights(built, settings.ema),
    )  # fmt: skip
    member.pass_rate_on()  # a schedule that warms up has changed it already
    return member


def _read_large_tables_sparsely(model: nn.Module, batch_size: int) -> None:
    """Give large tables sparse gradients, so that a step of row-wise Adagrad reads and writes the batch's rows alone.

    The numbers are the same but for rounding. A table is large if that is quicker: in ``benchmarks/tables.py`` with 32
    rows for each row of a batch, but not with 8.
    """
    for part in model.modules():
        if isinstance(part, nn.Embedding) and part.num_embeddings >= _LARGE * batch_size:
            part.sparse = not part.scale_grad_by_freq  # which PyTorch does not know of sparse gradients


def _monitor(model: nn.Module, optimizer: Optimizer, weighting: LossWeighting | None) -> Monitor | None:
    """Return a monitor of forks, a balancing optimizer and a loss weighting; None if there are none of these."""
    forked = any(isinstance(part, Fork) for part in model.modules())
    balances = hasattr(optimizer, "last_gram")
    return Monitor(model, optimizer, weighting) if forked or balances or weighting is not None else None


def _freeze_unused(model: nn.Module, schema: Schema, tasks: Sequence[int], partition: Partition) -> None:
    """Freeze parameters that no task reaches: DDP would wait for their gradients."""
    logits = trial_outputs(model, schema)
    parameters = list(model.parameters())
    found = torch.autograd.grad([logits[task].sum() for task in tasks], parameters, allow_unused=True)
    # Auxiliary losses may reach parameters that no logit reads.
    own = {id(p) for task in tasks for p in partition.task_parameters(model, schema.task_names[task])}
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.requires_grad_(gradient is not None or id(parameter) in own)
