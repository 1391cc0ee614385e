"""One model in training with its optimizer, and their state, which is checked before anything is changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from equipoise.forks.fork import Fork
from equipoise.loss_weighting import LossWeighting
from equipoise.monitor import Monitor
from equipoise.optim.rules import rule_of
from equipoise.training.averaging import AveragedWeights
from equipoise.training.optimizers import WithRowWiseTables
from equipoise.training.ranks.parallel import is_sharded
from equipoise.training.row_wise_adagrad import RowWiseAdagrad
from equipoise.training.state_checks import (
    UnexpectedStateError,
    expect_count,
    expect_equal,
    expect_keys,
    expect_kind_of,
    expect_list,
    expect_tensor,
)

__all__ = ["MEMBER_PARTS", "Member", "check_module", "model_state", "sharded_model_state"]

MEMBER_PARTS: Final = ("models", "averages", "optimizers", "weightings", "schedulers")
"""The parts of a member's state; a learner's state holds a list of each."""

_MOVES_WITH_STEPS = {"last_epoch", "_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step"}


@dataclass(frozen=True)
class Member:
    """One model, its optimizer, and the tasks that it is trained on.

    Attributes:
        module: the model as several ranks train it; the model itself in a single process.
        task_parameters: for each of ``tasks``, the parameters that its loss alone reaches.
        dense_parameters: all but the embedding tables and what a loss weighting learns, for clipping.
        optimizer: steps the parameters, but for tables whose optimizer is fused into the backward pass.
        fused: passes the learning rate on to these tables; None if there are none.
        fused_share: their learning rate over that of the other parameters.
        tasks: the places of the tasks in the schema.
        averaged: the moving average of the model's weights; None without one.
    """

    model: nn.Module
    module: nn.Module
    task_parameters: list[list[nn.Parameter]]
    dense_parameters: list[nn.Parameter]
    optimizer: Optimizer
    fused: Optimizer | None
    fused_share: float
    scheduler: LRScheduler | None
    tasks: list[int]
    monitor: Monitor | None
    weighting: LossWeighting | None
    averaged: AveragedWeights | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer steps."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that step with their gradient as it is; PUB and AdaTask balance the others."""
        balanced = {id(p) for p in getattr(self.optimizer, "balanced", ())}
        return [p for p in self.parameters if id(p) not in balanced]

    def predict(self, categorical: Tensor, numeric: Tensor) -> Sequence[Tensor]:
        """Return the outputs of all tasks, by the averaged weights if there are any."""
        if self.averaged is None:
            return self.module(categorical, numeric)  # type: ignore[no-any-return]
        return functional_call(self.model, self.averaged.averages, (categorical, numeric))  # type: ignore[no-any-return]

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's state with which :meth:`predict` predicts."""
        state = model_state(self.module) | ({} if self.averaged is None else self.averaged.averages)
        return copy.deepcopy(state)

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Give the model, and the average, weights that :meth:`weights` has returned."""
        self.model.load_state_dict(weights)
        if self.averaged is not None:
            self.averaged.load(weights)

    def averages(self) -> dict[str, Tensor]:
        """Return the averaged weights, empty without them."""
        return {} if self.averaged is None else self.averaged.averages

    def clip_gradients(self, norm: float | None) -> None:
        """Shorten the gradient of the dense parameters to a norm, if there is one and the gradient is longer."""
        if norm is not None:
            nn.utils.clip_grad_norm_(self.dense_parameters, norm)

    def end_step(self, step: int) -> None:
        """Move schedule and average on after a step, counted from one."""
        if self.scheduler is not None:
            self.scheduler.step()
            self.pass_rate_on()
        if self.averaged is not None:
            self.averaged.update(step)

    def pass_rate_on(self) -> None:
        """Give the fused optimizer the learning rate of the other one."""
        if self.fused is not None:
            for group in self.fused.param_groups:
                group["lr"] = self.optimizer.param_groups[0]["lr"] * self.fused_share
            self.fused.step()

    def gram(self) -> Tensor:
        """Return the Gram matrix of the tasks' gradients in the last backward pass, summed over the model's forks."""
        return torch.stack([part.last_gram for part in self.model.modules() if isinstance(part, Fork)]).sum(0)

    def weighting_state(self) -> dict[str, Any]:
        """Return the state of the loss weighting, empty without one."""
        return {} if self.weighting is None else self.weighting.state_dict()

    def stepping_state(self) -> dict[str, Any]:
        """Return the state of optimizer, loss weighting and schedule."""
        return {
            "optimizers": self.optimizer.state_dict(),
            "weightings": self.weighting_state(),
            "schedulers": self.scheduler and self.scheduler.state_dict(),
        }

    def state(self) -> dict[str, Any]:
        """Return the whole state, but for what is sharded."""
        return {"models": model_state(self.module), "averages": self.averages(), **self.stepping_state()}

    def check_state(self, found: Mapping[str, Any], steps: int, place: int) -> None:
        """Check a state after ``steps`` steps of the member at ``place``; changes nothing.

        Raises:
            UnexpectedStateError: a part is missing or of another kind.
        """
        paths = {part: f"learner/{part}/{place}" for part in MEMBER_PARTS}
        optimizer = found["optimizers"]
        check_module(found["models"], model_state(self.module), paths["models"])
        check_module(found["averages"], self.averages(), paths["averages"])
        _check_optimizer(optimizer, self.optimizer, len(self.tasks), paths["optimizers"])
        check_module(found["weightings"], self.weighting_state(), paths["weightings"])
        if self.weighting is not None:
            _rehearse(self.weighting, found["weightings"], paths["weightings"])
        rates = [group["lr"] for group in optimizer["param_groups"]]
        _check_scheduler(found["schedulers"], self.scheduler, rates, steps, paths["schedulers"])

    def load_stepping_state(self, found: Mapping[str, Any], place: int) -> None:
        """Load a checked state of optimizer, loss weighting and schedule.

        Raises:
            UnexpectedStateError: one of them does not take its state; some may have taken theirs.
        """
        _load(self.optimizer.load_state_dict, found["optimizers"], f"learner/optimizers/{place}")
        _shard_optimizer_state(self.optimizer)
        if self.weighting is not None:
            _load(self.weighting.load_state_dict, found["weightings"], f"learner/weightings/{place}")
        if self.scheduler is not None:
            self.scheduler.load_state_dict(found["schedulers"])
        self.pass_rate_on()

    def load_model_state(self, found: Mapping[str, Any], place: int) -> None:
        """Load a checked state of the model and its averages; what is sharded stays as it is."""
        whole = {**found["models"], **sharded_model_state(self.module)}
        _load(_unwrapped(self.module).load_state_dict, whole, f"learner/models/{place}")
        if self.averaged is not None:
            self.averaged.load(found["averages"])


def model_state(module: nn.Module, /) -> dict[str, Any]:
    """Return the part of a model's state that every rank holds whole."""
    return {name: value for name, value in _unwrapped(module).state_dict().items() if not is_sharded(value)}


def sharded_model_state(module: nn.Module, /) -> dict[str, Any]:
    """Return the tensors of a model of which every rank holds some parts or none."""
    return {name: value for name, value in _unwrapped(module).state_dict().items() if is_sharded(value)}


def check_module(found: Any, own: Mapping[str, Any], place: str) -> None:
    """Check that ``found`` has the names, shapes and dtypes of a module's own state."""
    for name, value in expect_keys(found, own.keys(), place).items():
        if isinstance(own[name], Tensor):
            expect_tensor(value, own[name], f"{place}/{name}")
        elif type(value) is not type(own[name]):
            raise UnexpectedStateError(f"{place}/{name}", f"a {type(own[name]).__name__}", value)


def _load(load: Callable[[dict[str, Any]], object], found: Mapping[str, Any], place: str) -> None:
    """Call ``load`` with a checked state.

    Raises:
        UnexpectedStateError: it does not take the state.
    """
    try:
        load(dict(found))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = next(iter(f"{error}".splitlines()), type(error).__name__)
        raise UnexpectedStateError(
            place, "a state that can be loaded", found, words=f"one that cannot ({reason})"
        ) from error


def _check_optimizer(found: Any, optimizer: Optimizer, tasks: int, place: str) -> None:
    """Check the state dict of an optimizer of ``tasks`` tasks: its groups, and the entries of each parameter.

    Options but the learning rate must be those of ``optimizer``, since the settings of the training determine them.
    """
    own = optimizer.state_dict()
    expect_keys(found, own.keys(), place)
    groups = expect_list(found["param_groups"], f"{place}/param_groups", length=len(own["param_groups"]))
    for index, (group, like) in enumerate(zip(groups, own["param_groups"], strict=True)):
        for name, value in expect_keys(group, like.keys(), f"{place}/param_groups/{index}").items():
            where = f"{place}/param_groups/{index}/{name}"
            if isinstance(like[name], Mapping):
                _check_memory(value, like[name], tasks, where)
            elif name != "lr":
                expect_equal(value, like[name], where)
            elif not isinstance(value, float) or not 0 <= value <= like.get("initial_lr", math.inf):
                raise UnexpectedStateError(where, f"a rate from 0 to {like.get('initial_lr', 'any')}", value)
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    shared = {id(p) for p in getattr(optimizer, "shared", ())}
    rule = rule_of(getattr(optimizer, "torch_optimizer", optimizer))
    row_wise = optimizer.row_wise.state if isinstance(optimizer, WithRowWiseTables) else {}
    if not isinstance(found["state"], Mapping):
        raise UnexpectedStateError(f"{place}/state", "a dict", found["state"])
    for index, entries in found["state"].items():
        where = f"{place}/state/{index}"
        if type(index) is not int or not 0 <= index < len(parameters):
            raise UnexpectedStateError(where, f"the place of one of {len(parameters)} parameters", index)
        p, group = parameters[index]
        alike = torch.empty(p.shape, dtype=p.dtype, device="meta")
        initial = RowWiseAdagrad.initial(alike) if p in row_wise else rule.initial(alike, group)
        for name, value in expect_keys(entries, initial.keys(), where).items():
            like = initial[name]
            if id(p) in shared and isinstance(value, Tensor) and value.dim() > like.dim():  # AdaTask's, one per task
                like = like.expand(tasks, *like.shape)
            expect_tensor(value, like, f"{where}/{name}")
    for key in own.keys() - {"state", "param_groups"}:
        _check_memory(found[key], own[key], tasks, f"{place}/{key}")


def _rehearse(weighting: LossWeighting, found: Mapping[str, Any], place: str) -> None:
    """Load a state into a copy and use the copy, because a weighting may hold an optimizer of its own."""
    copied = copy.deepcopy(weighting)
    losses = torch.ones_like(copied.last_losses)

    loaded: dict[str, Any] = {}

    def load_and_use(state: dict[str, Any]) -> None:
        copied.load_state_dict(copy.deepcopy(state))  # an optimizer keeps the very tensors that it is given
        loaded.update(copy.deepcopy(copied.state_dict()))
        copied.weigh(losses, losses.bool())
        copied.after_backward(losses.diag())
        copied.after_step(losses, losses.bool())
        copied.after_epoch()

    with torch.random.fork_rng(devices=[losses.device] if losses.is_cuda else []):
        _load(load_and_use, found, place)
    expect_kind_of(found, loaded, place)  # an optimizer fills in an option that is missing


def _shard_optimizer_state(optimizer: Optimizer) -> None:
    """Shard state that was loaded whole as FSDP2 has sharded its parameter."""
    parameter: Any
    for parameter, state in optimizer.state.items():
        for name, value in state.items() if hasattr(parameter, "placements") else ():
            if value.shape == parameter.shape and not hasattr(value, "placements"):
                from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - slow to import

                state[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _check_scheduler(found: Any, scheduler: LRScheduler | None, rates: Sequence[Any], steps: int, place: str) -> None:
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


def _check_memory(found: Any, like: Mapping[str, Any], tasks: int, place: str) -> None:
    """Check a wrapper's own state, as far as a new wrapper shows its form.

    Before its first step an optimizer may not know its tasks, so their number and names come from the settings.
    """
    for name, value in expect_keys(found, like.keys(), place).items():
        other, where = like[name], f"{place}/{name}"
        if name == "tasks":
            named = isinstance(value, list | tuple) and len(value) == tasks and all(type(v) is str for v in value)
            if not named and not (type(value) is int and value == tasks) and value is not None:
                raise UnexpectedStateError(where, f"{tasks} tasks", value)
        elif isinstance(other, Mapping):
            _check_memory(value, other, tasks, where)
        elif isinstance(other, Tensor):
            # A dimension of 0 is one of tasks that are not known yet.
            shape = [tasks if size == 0 else size for size in other.shape]
            expect_tensor(value, torch.empty(shape, dtype=other.dtype, device="meta"), where)
        elif other is not None and type(value) is not type(other):
            raise UnexpectedStateError(where, f"a value such as {other!r}", value)
        elif type(value) is int:
            expect_count(value, where)


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module in a DistributedDataParallel, so that names do not depend on the number of ranks."""
    return module.module if isinstance(module, DistributedDataParallel) else module
