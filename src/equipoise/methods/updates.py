"""Methods that balance or bound the tasks' updates: wrappers around the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Adam, Optimizer

from equipoise.methods.method import Method, keyword_options
from equipoise.optim import PUB, AdaTask, Clippy

__all__ = ["AdaTaskMethod", "ClippyMethod", "PubMethod"]

_FAMILY = "updates"


def _built(method: Method, tasks: Sequence[str]) -> str:
    """The optimizer that the method builds, on one line and without what does not depend on the method."""
    parameter = Parameter(torch.zeros(1))
    group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    optimizer = method.optimizer(Adam([parameter]), shared=[parameter], tasks=tasks, data_parallel=group)
    return repr(optimizer).replace(repr(Adam([parameter])), "Adam")


@dataclass(frozen=True)
class ClippyMethod(Method):
    """The plain sum of losses with bounded updates; options are those of :class:`equipoise.Clippy`."""

    family: ClassVar[str] = _FAMILY

    def known_options(self) -> Mapping[str, Any]:
        """The keyword-only parameters of Clippy."""
        return keyword_options(Clippy)

    def settings(self, tasks: Sequence[str]) -> str:
        """The optimizer, spelled out."""
        return _built(self, tasks)

    def optimizer(
        self,
        base: Optimizer,
        *,
        shared: Sequence[Parameter],
        tasks: Sequence[str],
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> Optimizer:
        """Clippy around ``base``."""
        return Clippy(base, **self.options)


@dataclass(frozen=True)
class AdaTaskMethod(Method):
    """Every task with its own optimizer state on the shared parameters."""

    family: ClassVar[str] = _FAMILY

    def settings(self, tasks: Sequence[str]) -> str:
        """The optimizer, spelled out."""
        return _built(self, tasks)

    def optimizer(
        self,
        base: Optimizer,
        *,
        shared: Sequence[Parameter],
        tasks: Sequence[str],
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> Optimizer:
        """AdaTask around ``base``."""
        return AdaTask(base, shared=shared, data_parallel=data_parallel)

    def backward(self, optimizer: Optimizer, losses: Sequence[Tensor], /) -> None:
        """One backward pass per task, by the optimizer."""
        assert isinstance(optimizer, AdaTask)
        optimizer.backward(losses)


@dataclass(frozen=True)
class PubMethod(Method):
    """PUB; options are those of :class:`equipoise.PUB`.

    Attributes:
        own_state: whether AdaTask stands between PUB and the optimizer.
    """

    own_state: bool = False

    family: ClassVar[str] = _FAMILY
    monitored: ClassVar[bool] = True

    def known_options(self) -> Mapping[str, Any]:
        """The keyword-only parameters of PUB."""
        return keyword_options(PUB)

    def settings(self, tasks: Sequence[str]) -> str:
        """The optimizer, spelled out."""
        return _built(self, tasks)

    def optimizer(
        self,
        base: Optimizer,
        *,
        shared: Sequence[Parameter],
        tasks: Sequence[str],
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> Optimizer:
        """PUB around ``base``, or around AdaTask around it."""
        if self.own_state:
            base = AdaTask(base, shared=shared, data_parallel=data_parallel)
        return PUB(base, shared=shared, tasks=list(tasks), data_parallel=data_parallel, **self.options)

    def backward(self, optimizer: Optimizer, losses: Sequence[Tensor], /) -> None:
        """As many backward passes as PUB needs."""
        assert isinstance(optimizer, PUB)
        optimizer.backward(losses)
