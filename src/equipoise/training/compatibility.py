"""Combinations that cannot be trained, with reason and remedy, found before anything is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch.distributed as dist

from equipoise.errors import SettingError
from equipoise.methods import Method, MethodError
from equipoise.settings import Sharding, TrainingSettings
from equipoise.training.ranks.world import World

__all__ = ["CHECKS", "Combination", "IncompatibleError", "check_compatible"]


class IncompatibleError(SettingError):
    """Settings that exclude each other: the message says why, and what to do."""


@dataclass(frozen=True)
class Combination:
    """A combination of method, model and sharding to train."""

    method: Method
    settings: TrainingSettings
    world: World

    @property
    def sharding(self) -> Sharding:
        """The way in which the ranks share the model."""
        return self.settings.sharding

    @property
    def with_fsdp(self) -> bool:
        """True if FSDP2 shards parameters."""
        return self.sharding.endswith("fsdp")

    @property
    def with_torchrec(self) -> bool:
        """True if TorchRec shards the tables."""
        return self.sharding not in ("ddp", "fsdp")

    @property
    def sharding_without_fsdp(self) -> str:
        """The same way without FSDP2, for a message."""
        return self.sharding.removesuffix("+fsdp") if self.with_torchrec else "ddp"


CHECKS: Final[list[Callable[[Combination], Iterator[str]]]] = []
"""Every check: yields why a combination cannot work and what to do, or nothing."""


def check_compatible(combination: Combination, /) -> None:
    """Refuse a combination that cannot work.

    Raises:
        IncompatibleError: with all reasons found.
    """
    found = [reason for check in CHECKS for reason in check(combination)]
    if found:
        raise IncompatibleError("\n".join(found))


@CHECKS.append
def _sharding_needs_a_group(given: Combination) -> Iterator[str]:
    if given.sharding != "ddp" and not dist.is_initialized():
        yield (
            f"Sharding {given.sharding!r} needs torchrun, found a process by itself: launch with "
            "torchrun --nproc-per-node N (1 will do), or leave the sharding out."
        )


@CHECKS.append
def _preferences(given: Combination) -> Iterator[str]:
    if given.settings.task_weights:
        try:
            given.method.with_task_weights(given.settings.task_weights)
        except MethodError as error:
            yield str(error)


@CHECKS.append
def _whole_gradients(given: Combination) -> Iterator[str]:
    if given.with_fsdp and "whole gradients" in given.method.needs:
        yield (
            f"Method {given.method.name!r} needs every task's whole gradient of the shared parameters, which FSDP2 "
            f"shards: use sharding {given.sharding_without_fsdp}, or balance at a fork (multibalance)."
        )


@CHECKS.append
def _second_derivatives(given: Combination) -> Iterator[str]:
    if given.with_fsdp and "second derivatives" in given.method.needs:
        yield (
            f"Method {given.method.name!r} differentiates the towers' gradients once more, for which FSDP2 keeps no "
            f"whole parameters: use sharding {given.sharding_without_fsdp}, or balance at a fork alone (fairgrad)."
        )


@CHECKS.append
def _averages_itself(given: Combination) -> Iterator[str]:
    if given.world.size > 1 and not given.method.spans_ranks:
        yield (
            f"Method {given.method.name!r} makes one backward pass per task, but its optimizer does not take "
            "data_parallel, so that it could not average the tasks' gradients over the ranks: train it in one process."
        )


@CHECKS.append
def _whole_updates(given: Combination) -> Iterator[str]:
    if given.with_torchrec and "whole updates" in given.method.needs:
        yield (
            f"Method {given.method.name!r} needs every parameter's step, but TorchRec's tables step in their backward "
            "pass (or, data-parallel, lie apart where the model has one, which changes what is found): use sharding "
            f"{'ddp' if 'whole gradients' in given.method.needs else 'ddp or fsdp'}."
        )


@CHECKS.append
def _averaged_tables(given: Combination) -> Iterator[str]:
    if given.sharding == "data-parallel" and "per-task backward" in given.method.needs:
        yield (
            f"Method {given.method.name!r} averages its tasks' gradients itself, but TorchRec averages data-parallel "
            "tables in every backward pass: shard them table-, row- or column-wise, or use sharding ddp."
        )


@CHECKS.append
def _sparse_tables(given: Combination) -> Iterator[str]:
    row_wise = given.settings.table_optimizer == "rowwise-adagrad" and given.sharding == "ddp"
    in_torchrec = given.with_torchrec and given.sharding != "data-parallel"
    if given.settings.model_options.get("sparse") and not (row_wise or in_torchrec):
        yield (
            "The model option sparse gives the table sparse gradients, which only row-wise Adagrad takes: set "
            "table_optimizer to rowwise-adagrad under sharding ddp, leave the option out, or let TorchRec shard the "
            "tables (table-wise, row-wise, …), where they never are gradients of the whole table."
        )


@CHECKS.append
def _torchrec_is_there(given: Combination) -> Iterator[str]:
    if given.with_torchrec and importlib.util.find_spec("torchrec") is None:
        yield (
            f"Sharding {given.sharding!r} needs TorchRec, which is not installed: pip install fbgemm-gpu-cpu "
            "tensordict pyre-extensions (for CUDA fbgemm-gpu), then pip install --no-deps torchrec, or use ddp or fsdp."
        )


@CHECKS.append
def _decayed_tables(given: Combination) -> Iterator[str]:
    if given.settings.table_decay and given.with_torchrec:
        yield (
            f"table_decay decays the tables in Adam's step, but under sharding {given.sharding!r} TorchRec steps them "
            "itself: set table_decay to 0, or use sharding ddp or fsdp."
        )


@CHECKS.append
def _decay_in_the_step(given: Combination) -> Iterator[str]:
    settings = given.settings
    if settings.table_decay and settings.table_optimizer == "same" and settings.optimizer not in {"adam", "adamw"}:
        yield (
            f"table_decay is a decoupled decay, which {settings.optimizer} does not have: use the optimizer adam or "
            "adamw, or table_optimizer rowwise-adagrad, or set table_decay to 0."
        )


@CHECKS.append
def _row_wise_tables(given: Combination) -> Iterator[str]:
    if given.settings.table_optimizer == "same":
        return
    if given.method.optimizer is not None or given.method.jacobian is not None:
        yield (
            f"Method {given.method.name!r} steps the tables together with the other shared parameters, which row-wise "
            "Adagrad does not do: set table_optimizer to same, or balance at a fork (multibalance)."
        )
    if given.sharding in {"fsdp", "data-parallel"}:
        yield (
            f"Row-wise Adagrad needs whole rows of a table, which sharding {given.sharding!r} does not give it: use "
            "ddp, or let TorchRec step the tables (table-wise, table-wise+fsdp, …)."
        )


@CHECKS.append
def _clipping(given: Combination) -> Iterator[str]:
    if given.settings.clip_norm is not None and {"per-task backward", "whole gradients"} <= given.method.needs:
        yield (
            f"Method {given.method.name!r} steps with the tasks' gradients one by one, so there is no gradient to clip "
            "before its step: leave clip_norm out, or use a method at a fork (multibalance) or clippy."
        )


@CHECKS.append
def _whole_weights(given: Combination) -> Iterator[str]:
    for name in ("ema", "stop_on"):
        if getattr(given.settings, name) is not None and given.sharding != "ddp":
            yield (
                f"{name} keeps a second set of weights whole on each rank, but sharding {given.sharding!r} spreads "
                f"them over the ranks: use sharding ddp, or leave {name} out."
            )


@CHECKS.append
def _fused_steps(given: Combination) -> Iterator[str]:
    if given.with_torchrec and given.sharding != "data-parallel" and given.settings.non_finite == "skip-step":
        yield (
            f"non_finite 'skip-step' looks at the gradients before the step, but under sharding {given.sharding!r} the "
            "tables have made theirs in the backward pass: use 'raise' or 'skip-task'."
        )
