"""The state of one model and what steps it: what a checkpoint holds of it, checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from equipoise.optim.rules import rule_of
from equipoise.training.ranks.parallel import is_sharded
from equipoise.training.state_checks import (
    UnexpectedStateError,
    expect_equal,
    expect_keys,
    expect_kind_of,
    expect_list,
    expect_tensor,
)

__all__ = [
    "check_module_state",
    "check_optimizer_state",
    "check_scheduler_state",
    "load_model_state",
    "load_optimizer_state",
    "load_part",
    "model_state",
    "sharded_model_state",
]

_MOVES_WITH_STEPS = {"last_epoch", "_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step"}


def model_state(module: nn.Module, /) -> dict[str, Any]:
    """Return what every rank holds whole of a model's state."""
    return {name: value for name, value in _unwrapped(module).state_dict().items() if not is_sharded(value)}


def sharded_model_state(module: nn.Module, /) -> dict[str, Any]:
    """Return the tensors of a model of which every rank holds some parts or none."""
    return {name: value for name, value in _unwrapped(module).state_dict().items() if is_sharded(value)}


def check_module_state(found: Any, own: Mapping[str, Any], place: str) -> None:
    """Check that ``found`` has the names, shapes and dtypes of a module's own state."""
    for name, value in expect_keys(found, own.keys(), place).items():
        if isinstance(own[name], Tensor):
            expect_tensor(value, own[name], f"{place}/{name}")
        elif type(value) is not type(own[name]):
            raise UnexpectedStateError(f"{place}/{name}", f"a {type(own[name]).__name__}", value)


def load_model_state(module: nn.Module, found: Mapping[str, Any], place: str) -> None:
    """Load a checked state; what is sharded stays as it is."""
    load_part(_unwrapped(module).load_state_dict, {**found, **sharded_model_state(module)}, place)


def load_part(load: Callable[[dict[str, Any]], object], found: Mapping[str, Any], place: str) -> None:
    """Call ``load`` with a checked state.

    Raises:
        UnexpectedStateError: it does not take the state.
    """
    try:
        load(dict(found))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = next(iter(f"{error}".splitlines()), type(error).__name__)
        raise UnexpectedStateError(place, "a state that can be loaded", f"the reason {reason}") from error


def check_optimizer_state(found: Any, optimizer: Optimizer, tasks: int, place: str) -> None:
    """Check the state dict of an optimizer of ``tasks`` tasks: its groups, and the entries of each parameter.

    Options but the learning rate must be those of ``optimizer``, since the settings of the training determine them.
    """
    own = optimizer.state_dict()
    expect_keys(found, own.keys(), place)
    groups = expect_list(found["param_groups"], f"{place}/param_groups", length=len(own["param_groups"]))
    for index, (group, like) in enumerate(zip(groups, own["param_groups"], strict=True)):
        for name, value in expect_keys(group, like.keys(), f"{place}/param_groups/{index}").items():
            where = f"{place}/param_groups/{index}/{name}"
            if name != "lr":
                expect_equal(value, like[name], where)
            elif not isinstance(value, float) or not 0 <= value <= like.get("initial_lr", math.inf):
                raise UnexpectedStateError(where, f"a rate from 0 to {like.get('initial_lr', 'any')}", value)
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    shared = {id(p) for p in getattr(optimizer, "shared", ())}
    rule = rule_of(getattr(optimizer, "torch_optimizer", optimizer))
    if not isinstance(found["state"], Mapping):
        raise UnexpectedStateError(f"{place}/state", "a dict", found["state"])
    for index, entries in found["state"].items():
        where = f"{place}/state/{index}"
        if type(index) is not int or not 0 <= index < len(parameters):
            raise UnexpectedStateError(where, f"the place of one of {len(parameters)} parameters", "another key")
        p, group = parameters[index]
        initial = rule.initial(torch.empty(p.shape, dtype=p.dtype, device="meta"), group)
        for name, value in expect_keys(entries, initial.keys(), where).items():
            like = initial[name]
            if id(p) in shared and isinstance(value, Tensor) and value.dim() > like.dim():  # AdaTask's, one per task
                like = like.expand(tasks, *like.shape)
            expect_tensor(value, like, f"{where}/{name}")
    for key in own.keys() - {"state", "param_groups"}:
        _check_own_state(found[key], own[key], f"{place}/{key}")


def load_optimizer_state(optimizer: Optimizer, found: Mapping[str, Any], place: str) -> None:
    """Load a checked state; of parameters that FSDP2 has sharded the state is sharded too."""
    load_part(optimizer.load_state_dict, found, place)
    parameter: Any
    for parameter, state in optimizer.state.items():
        for name, value in state.items() if hasattr(parameter, "placements") else ():
            if value.shape == parameter.shape and not hasattr(value, "placements"):
                from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - slow to import

                state[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)


def check_scheduler_state(
    found: Any, scheduler: LRScheduler | None, rates: Sequence[Any], steps: int, place: str
) -> None:
    """Check the state of a learning rate schedule after ``steps`` steps, at which the groups have these rates."""
    if scheduler is None or found is None:
        expect_equal(found, None if scheduler is None else {}, place)
        return
    own = scheduler.state_dict()
    expected = {"last_epoch": steps, "_step_count": steps + 1, "_last_lr": list(rates)}
    for name, value in expect_keys(found, own.keys(), place).items():
        if name in expected or name not in _MOVES_WITH_STEPS:
            expect_equal(value, expected.get(name, own[name]), f"{place}/{name}")
        else:
            expect_kind_of(value, own[name], f"{place}/{name}")


def _check_own_state(found: Any, like: Any, place: str) -> None:
    """Check what a wrapper keeps beside the wrapped optimizer's state, as far as a fresh one tells its form."""
    if not isinstance(like, Mapping):
        return
    for name, value in expect_keys(found, like.keys(), place).items():
        other = like[name]
        if isinstance(other, Tensor):
            if not isinstance(value, Tensor) or value.dtype != other.dtype or value.dim() != other.dim():
                raise UnexpectedStateError(f"{place}/{name}", f"{other.dim()} dimensions of {other.dtype}", value)
        elif isinstance(other, Mapping):
            _check_own_state(value, other, f"{place}/{name}")
        elif other is not None and type(value) is not type(other):
            raise UnexpectedStateError(f"{place}/{name}", f"a value such as {other!r}", value)


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module in a DistributedDataParallel, so that names do not depend on the number of ranks."""
    return module.module if isinstance(module, DistributedDataParallel) else module
