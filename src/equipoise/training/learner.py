"""What takes a training step: the models of one method, each with its optimizer and the tasks it learns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from equipoise.monitor import Monitor, Reading
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import MODELS, RankingModel, build_model
from equipoise.ranking.schema import Batch, Schema
from equipoise.training.errors import SettingError
from equipoise.training.methods import Method

__all__ = ["Learner"]


@dataclass(frozen=True)
class _Member:
    """One model, its optimizer, and which of the schema's tasks it is trained on."""

    model: RankingModel
    optimizer: Optimizer
    scheduler: LRScheduler | None
    tasks: list[int]
    monitor: Monitor | None


class Learner:
    """A method's models in training: one for joint methods, one per task for single-task training.

    Every model of every method starts from the same weights for the same seed, whatever stands at its fork;
    the global random state is left as it was.

    Args:
        schema: features and tasks.
        method: what to train with.
        model: a name in :data:`equipoise.ranking.models.MODELS`, built with ``model_options``.
        lr: Adam's learning rate.
        decay_steps: the rate falls linearly to 0 over so many steps; None: it stays.
        seed: of the initial weights.
        device: where the models live; batches given to :meth:`step` must be there.
        loss_scale: task -> factor on its loss; 1 for tasks that are not named.

    Raises:
        SettingError: the model, one of its options, the device or a task in ``loss_scale`` is not known, or a
            number is out of range.
    """

    def __init__(
        self,
        schema: Schema,
        method: Method,
        *,
        model: str,
        lr: float,
        decay_steps: int | None = None,
        seed: int,
        device: torch.device | str = "cpu",
        model_options: Mapping[str, Any] | None = None,
        loss_scale: Mapping[str, float] | None = None,
    ) -> None:
        if not lr > 0:
            raise SettingError(f"The learning rate must be above 0, found {lr}.")
        self.schema = schema
        self.method = method
        self.device = _device(device)
        self._scale = _factors(schema.task_names, loss_scale or {})
        self._members: list[_Member] = []
        options = _checked(model, model_options or {})
        for group in method.groups(schema.task_names):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                try:
                    built = build_model(model, schema, fork=method.fork(group), **options)
                except ValueError as error:
                    raise SettingError(f"Model {model!r}: {error}") from error
            built.to(self.device)
            base = torch.optim.Adam(built.parameters(), lr=lr)
            optimizer = method.optimizer(base, shared=list(built.shared_parameters()), tasks=group)
            self._members.append(
                _Member(
                    built, optimizer,
                    None if decay_steps is None else LinearLR(optimizer, 1.0, 0.0, decay_steps),
                    [schema.task_names.index(task) for task in group],
                    Monitor(built, optimizer) if method.monitored else None,
                )
            )  # fmt: skip

    def step(self, batch: Batch, /) -> Tensor:
        """One optimizer step of every model; the unscaled losses before it, shape [M], on the device."""
        losses: list[Tensor] = [torch.empty(0)] * len(self.schema.tasks)
        for member in self._members:
            logits = member.model(batch.categorical, batch.numeric)
            own = task_losses([logits[task] for task in member.tasks], self._labels(batch, member.tasks))
            member.optimizer.zero_grad()
            self.method.backward(
                member.optimizer,
                [self._scaled(loss, task) for loss, task in zip(own, member.tasks, strict=True)],
            )
            member.optimizer.step()
            if member.scheduler is not None:
                member.scheduler.step()
            for task, loss in zip(member.tasks, own, strict=True):
                losses[task] = loss.detach()
        return torch.stack(losses)

    def logits(self, batch: Batch, /) -> Tensor:
        """Every task's logits from the model that learns it, in eval mode, shape [B, M]."""
        columns: list[Tensor] = [torch.empty(0)] * len(self.schema.tasks)
        with torch.inference_mode():
            for member in self._members:
                member.model.eval()
                predicted = member.model(batch.categorical, batch.numeric)
                member.model.train()
                for task in member.tasks:
                    columns[task] = predicted[task]
        return torch.stack(columns, dim=1)

    def read(self) -> list[Reading]:
        """What the monitors saw in the last step, still on the device; nothing for methods without one."""
        return [member.monitor.read() for member in self._members if member.monitor is not None]

    def state_dict(self) -> dict[str, Any]:
        """The state of every model (its fork's too), optimizer and learning rate schedule."""
        return {
            "models": [member.model.state_dict() for member in self._members],
            "optimizers": [member.optimizer.state_dict() for member in self._members],
            "schedulers": [member.scheduler and member.scheduler.state_dict() for member in self._members],
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Back to a state that :meth:`state_dict` gave."""
        parts = zip(self._members, state["models"], state["optimizers"], state["schedulers"], strict=True)
        for member, model, optimizer, scheduler in parts:
            member.model.load_state_dict(model)
            member.optimizer.load_state_dict(optimizer)
            if member.scheduler is not None:
                member.scheduler.load_state_dict(scheduler)

    def _labels(self, batch: Batch, tasks: list[int]) -> Tensor:
        return batch.labels if len(tasks) == len(self.schema.tasks) else batch.labels[:, tasks]

    def _scaled(self, loss: Tensor, task: int) -> Tensor:
        return loss if self._scale[task] == 1 else loss * self._scale[task]


def _device(name: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # not known; not built in or not there
        raise SettingError(f"Expected a device that PyTorch can use here, found {str(name)!r}: {error}") from error


def _factors(tasks: Sequence[str], stated: Mapping[str, float]) -> list[float]:
    unknown = sorted(stated.keys() - set(tasks))
    if unknown:
        raise SettingError(f"Loss scales: expected tasks out of {', '.join(tasks)}; found {', '.join(unknown)}.")
    wrong = [f"{task}={factor}" for task, factor in stated.items() if not 0 < factor < float("inf")]
    if wrong:
        raise SettingError(f"Loss scales must be positive and finite, found {', '.join(wrong)}.")
    return [float(stated.get(task, 1.0)) for task in tasks]


def _checked(model: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    if model not in MODELS:
        raise SettingError(f"Expected a model out of {', '.join(MODELS)}; found {model!r}.")
    parameters = inspect.signature(MODELS[model]).parameters
    known = [name for name in parameters if name not in {"schema", "fork"}]
    unknown = sorted(stated.keys() - set(known))
    if unknown:
        raise SettingError(f"Model {model!r} takes the options {', '.join(known)}; found {', '.join(unknown)}.")
    return {name: _like(parameters[name].default, value, f"Model {model!r}, {name}") for name, value in stated.items()}


def _like(default: object, value: object, what: str) -> object:
    """The value, if it is of the default's kind; one width may stand for a sequence of one."""
    if isinstance(default, tuple):
        widths = [value] if isinstance(value, int) else value
        if isinstance(widths, Sequence) and all(type(width) is int for width in widths):
            return tuple(widths)
        raise SettingError(f"{what}: expected whole numbers such as 128-64, found {value!r}.")
    if type(value) is not type(default):
        raise SettingError(f"{what}: expected a value like {default!r}, found {value!r}.")
    return value
