"""What a method has to say: what stands at the fork, which optimizer steps, how losses go backward."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.errors import SettingError
from equipoise.forks.fork import Fork

__all__ = ["Method", "MethodError"]


class MethodError(SettingError):
    """A method or one of its options is not known: the message lists what there is."""


@dataclass(frozen=True)
class Method:
    """A way to train a model on several losses; the base class is the plain sum of losses.

    Attributes:
        name: as in the registry, with overridden options behind a colon: ``"multibalance:beta=0.3"``.
        label: for tables and plots.
        summary: one sentence for a reader who does not know the method.
        family: for grouping in a report.
        monitored: whether a :class:`equipoise.Monitor` has something to watch: a fork, or PUB.
        options: what the method's fork or optimizer is built with; what is not named keeps its default.
    """

    name: str
    label: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)

    family: ClassVar[str]
    monitored: ClassVar[bool] = False

    def known_options(self) -> Mapping[str, Any]:
        """The options that :meth:`with_options` takes, with their defaults."""
        return {}

    def settings(self, tasks: Sequence[str]) -> str:
        """What would be trained, spelled out: a change of a default shows here."""
        return self.name

    def with_options(self, **options: Any) -> Self:
        """The same method with some options replaced, and a name that says so.

        Raises:
            MethodError: an option is not known, or its value is refused by what is built with it.
        """
        known = self.known_options()
        unknown = sorted(options.keys() - known.keys())
        if unknown:
            raise MethodError(
                f"Method {self.name!r} takes {', '.join(known) or 'no options'}; found {', '.join(unknown)}."
            )
        for name, value in options.items():
            kinds, kind = _KINDS.get(type(known[name]), ((object,), ""))
            if type(value) not in kinds and object not in kinds:
                raise MethodError(f"Method {self.name!r}: {name} must be {kind}, found {value!r}.")
        stated = ",".join(f"{key}={value}" for key, value in options.items())
        changed = dataclasses.replace(
            self, name=f"{self.name}:{stated}" if stated else self.name, options={**self.options, **options}
        )
        try:
            changed.settings(("a", "b"))
        except (TypeError, ValueError) as error:
            raise MethodError(f"Method {changed.name!r}: {error}") from error
        return changed

    def groups(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """Which tasks are trained together in one model: all of them."""
        return [tuple(tasks)]

    def fork(self, tasks: Sequence[str]) -> Fork | None:
        """A new fork for the model, or None for the plain sum of gradients."""
        return None

    def optimizer(
        self,
        base: Optimizer,
        *,
        shared: Sequence[Parameter],
        tasks: Sequence[str],
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> Optimizer:
        """The optimizer that steps, around ``base``, which holds the parameters that it is to step.

        Args:
            shared: those that all tasks reach.
            data_parallel: the module around the model that trains on several ranks, or their group; None in a
                single process.
        """
        return base

    def backward(self, optimizer: Optimizer, losses: Sequence[Tensor], /) -> None:
        """The gradients of a group's losses, one scalar each, into the parameters."""
        torch.autograd.backward(torch.stack(list(losses)).sum())


_NOT_FROM_TEXT = {
    "shared",
    "tasks",
    "process_group",
    "data_parallel",
    "task_weights",
}  # what a word of the command line cannot spell


_KINDS: Mapping[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"), int: ((int,), "a whole number"), float: ((int, float), "a number"),
    str: ((str,), "a word"),
}  # fmt: skip
"""Of a default's type: the types that a value may have, and their name."""


def keyword_options(build: Callable[..., object]) -> dict[str, Any]:
    """A constructor's keyword-only parameters that one word can spell, and their defaults."""
    return {
        entry.name: entry.default
        for entry in inspect.signature(build).parameters.values()
        if entry.kind is inspect.Parameter.KEYWORD_ONLY and entry.name not in _NOT_FROM_TEXT
    }
