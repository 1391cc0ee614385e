"""The description of a method: its fork, loss weighting, aggregator or optimizer, and its needs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Adam, Optimizer

from equipoise.errors import SettingError
from equipoise.jacobian import JacobianDescent, TaskAggregator
from equipoise.loss_weighting import LossWeighting
from equipoise.methods.factories import keyword_options, parameters_of
from equipoise.scalars import Scalar, spell_value

__all__ = ["NEEDS", "PER_TASK", "Method", "MethodError"]

NEEDS: Final[Mapping[str, str]] = {
    "a model per task": "every task is trained in a model of its own",
    "per-task backward": "the optimizer has `backward(losses)`, which takes the place of `sum(losses).backward()`",
    "second derivatives": "the towers' gradients are differentiated once more: no FSDP2, no compiled towers",
    "whole gradients": "every task's gradient of the shared parameters must lie whole on each rank",
    "whole updates": "every parameter must be stepped by the optimizer, not in the backward pass",
    "forward after step": "the method learns from the losses of a second forward pass, after each step",
    "epochs": "the method learns at the end of each epoch",
    "validation": "the method learns from the validation metrics at each point of the learning curve",
}
"""What a method may need of a training, each with its meaning."""


PER_TASK: Final = "one positive number per task"
"""In the place of values in :attr:`Method.search`: the option is a list with a positive number for each task."""


class MethodError(SettingError):
    """A method or one of its options cannot be used: the message says what was expected and found."""


@dataclass(frozen=True)
class Method:
    """A way to train a model on several losses; without any factory it is the plain sum of losses.

    A factory's keyword-only parameters are the method's options: with ``fork=MultiBalance`` a user may write
    ``"multibalance:beta=0.3"``.

    Args:
        name: letters, digits, ``-``, ``_`` and ``.``; overridden options stand behind a colon.
        label: the name in tables and plots; ``name`` if empty.
        summary: one sentence for a reader who does not know the method.
        paper: where it was published, such as ``"arXiv 2411.11871"``.
        year: the year of publication.
        fork: called with the tasks' names and options; returns a :class:`equipoise.Fork`.
        loss_weighting: called with the tasks' names and options; returns a
            :class:`equipoise.loss_weighting.LossWeighting`.
        jacobian: called with options; returns an aggregator, see :class:`equipoise.jacobian.JacobianDescent`.
        optimizer: called with the optimizer of the whole model, those of ``shared`` (the parameters that several tasks
            reach), ``tasks`` (names) and ``data_parallel`` (the module that spreads the model over several ranks, else
            None) that are among its parameters, and options; returns the optimizer that steps.
        needs: what the training must provide, out of :data:`NEEDS`; other combinations are refused. A method with
            ``jacobian`` implies the needs for the tasks' gradients and for whole optimizer steps.
        options: values of options that differ from the factories' defaults. They are part of the method, and cannot be
            overridden by name.
        task_weights: preferences among the tasks, by name; see :meth:`with_task_weights`.
        search: the main option and the values of it that tuning tries, where the paper tunes one: at most one option.
            :data:`PER_TASK` in the place of the values stands for a list of weights.

    Raises:
        MethodError: a need or an option is not known, two factories have an option of the same name, or the method has
            both ``optimizer`` and ``jacobian``; ``search`` names an option that is fixed, or several.

    Example:
        >>> from equipoise import MultiBalance
        >>> Method("slow", fork=MultiBalance, options={"gamma": 0.001}).with_options(beta=0.3).name
        'slow:beta=0.3'
    """

    name: str
    label: str = ""
    summary: str = ""
    paper: str = ""
    year: int | None = None
    fork: Callable[..., Module] | None = None
    loss_weighting: Callable[..., LossWeighting] | None = None
    optimizer: Callable[..., Optimizer] | None = None
    jacobian: Callable[..., Callable[[Tensor], Tensor] | TaskAggregator] | None = None
    needs: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)
    task_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        object.__setattr__(self, "needs", frozenset(self.needs) | (_OF_JACOBIAN if self.jacobian else frozenset()))
        if unknown := sorted(self.needs - NEEDS.keys()):
            raise MethodError(
                f"Method {self.name!r}: expected needs out of {', '.join(NEEDS)}; found {', '.join(unknown)}."
            )
        if self.jacobian is not None and self.optimizer is not None:
            raise MethodError(f"Method {self.name!r}: expected either optimizer or jacobian, found both.")
        self._refuse_unknown(self.options)
        self._refuse_unknown(self.search)
        if len(self.search) > 1 or self.search.keys() & self.options.keys() or not all(self.search.values()):
            raise MethodError(
                f"Method {self.name!r}: expected search to hold one option that is not fixed, with the values to try; "
                f"found {dict(self.search)!r}."
            )

    @property
    def family(self) -> str:
        """The stage that the method changes, for grouping in a report."""
        if self.fork is not None and self.loss_weighting is None:
            return "gradients at the fork"
        if self.jacobian is not None:
            return "gradients of the shared parameters"
        return "loss weights" if self.optimizer is None else "updates"

    @property
    def published(self) -> str:
        """The place and year of publication; empty if unpublished."""
        return ", ".join(filter(None, (self.paper, str(self.year or ""))))

    @property
    def factories(self) -> list[Callable[..., Any]]:
        """The factories that are set."""
        every = (self.fork, self.loss_weighting, self.optimizer, self.jacobian)
        return [factory for factory in every if factory is not None]

    @property
    def spans_ranks(self) -> bool:
        """True if the optimizer makes the backward passes itself and is told which ranks train together."""
        if "per-task backward" not in self.needs or self.optimizer is None:
            return True
        return "data_parallel" in parameters_of(self.optimizer)

    def known_options(self) -> dict[str, Any]:
        """Return the options of all factories, with their defaults."""
        known: dict[str, Any] = dict.fromkeys(("rates", "decays")) if "a model per task" in self.needs else {}
        for factory in self.factories:
            own = keyword_options(factory)
            if both := sorted(own.keys() & known.keys()):
                raise MethodError(
                    f"Method {self.name!r}: {', '.join(both)} is an option of two factories; rename it in one."
                )
            known |= own
        return known

    def open_options(self) -> list[str]:
        """Return the names of the options that a user may set."""
        return [name for name in self.known_options() if name not in self.options]

    def with_options(self, **options: Any) -> Method:
        """Return the same method with some options set, and with them in its name.

        Raises:
            MethodError: an option is not known, has been set before, or its value is refused by what is built with it.
        """
        self._refuse_unknown(options)
        if fixed := [f"{name}={self.options[name]}" for name in options if name in self.options]:
            raise MethodError(
                f"Method {self.name!r} stands for {', '.join(fixed)}, which cannot be set again: start from a method "
                "that leaves it open."
            )
        known = self.known_options()
        for name, value in options.items():
            kinds, kind = _KINDS.get(type(known[name]), ((object,), ""))
            if type(value) not in kinds and object not in kinds:
                raise MethodError(f"Method {self.name!r}: {name} must be {kind}, found {value!r}.")
        stated = ",".join(f"{name}={spell_value(value)}" for name, value in options.items())
        if not stated:
            return self
        if "=" in self.name:  # options were set before
            name, label = f"{self.name},{stated}", f"{self.label.removesuffix(')')},{stated})"
        else:
            name, label = f"{self.name}:{stated}", f"{self.label} ({stated})"
        changed = dataclasses.replace(
            self, name=name, label=label, options={**self.options, **options},
            search={name: values for name, values in self.search.items() if name not in options},
        )  # fmt: skip
        try:
            changed.settings(changed._trial_tasks())
        except (TypeError, ValueError) as error:
            raise MethodError(f"Method {changed.name!r}: {error}") from error
        return changed

    @property
    def takes_task_weights(self) -> bool:
        """True if preferences among the tasks change the training as they should.

        They do where a factory has the parameter ``task_weights``, where the losses are added up, since a sum can be
        weighted, and where every task has a model of its own, in which it has all the say.
        """
        return self.adds_losses or any("task_weights" in parameters_of(factory) for factory in self.factories)

    @property
    def adds_losses(self) -> bool:
        """True if the plain sum of the losses is trained on, with one backward pass and without a fork."""
        return not (self.fork or self.loss_weighting or "per-task backward" in self.needs)

    def with_task_weights(self, task_weights: Mapping[str, float]) -> Method:
        """Return the same method with preferences among the tasks: a positive number by name, 1 for other tasks.

        Raises:
            MethodError: it has no preferences, or what is built with it refuses them.

        Example:
            >>> from equipoise import MultiBalance
            >>> method = Method("mb", fork=MultiBalance).with_task_weights({"click": 9.0})
            >>> method.fork_factory(["click", "like"])().task_weights
            [9.0, 1.0]
        """
        if not self.takes_task_weights:
            raise MethodError(
                f"Method {self.name!r} has no preferences among tasks: leave task_weights out, or use a method that "
                "has them (equal, multibalance, pub, uw, …)."
            )
        preferring = dataclasses.replace(self, task_weights=dict(task_weights))
        try:
            preferring.settings(preferring._trial_tasks())
        except ValueError as error:
            raise MethodError(f"Method {self.name!r}: {error}") from error
        return preferring

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Check that options that name a task name one of these.

        Raises:
            MethodError: one of them does not.
        """
        for name in sorted(_NAMES_OF_TASKS & self.options.keys()):
            value = self.options[name]
            if value and value not in tasks:
                raise MethodError(
                    f"Method {self.name!r}: {name} must be one of the tasks {', '.join(tasks)}; found {value!r}."
                )

    def settings(self, tasks: Sequence[str]) -> str:
        """Return the name and the ``repr`` of what would be built for these tasks, so that a changed default shows."""
        parameter = Parameter(torch.zeros(1))
        adam = Adam([parameter])
        plain = repr(adam)  # before a wrapper writes into its groups
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        built: list[object] = []
        if fork := self.fork_factory(tasks):
            built.append(fork())
        if weighting := self.build_loss_weighting(tasks):
            built.append(weighting)
        if self.optimizer is not None or self.jacobian is not None:
            built.append(self.build_optimizer(adam, shared=[parameter], tasks=tasks, data_parallel=group))
        words = [" ".join(_ADDRESS.sub("", repr(part)).replace(plain, "Adam").split()) for part in built]
        return "; ".join([self.name, *words])

    def rate_of_model(self, place: int, lr: float, table_decay: float) -> tuple[float, float]:
        """Return the learning rate and table decay of a group's model: its own ones where the options state them.

        Example:
            >>> alone = Method("alone", needs=frozenset({"a model per task"}))
            >>> alone.with_options(rates=[0.01, 0.03]).rate_of_model(1, 0.001, 0.5)
            (0.03, 0.5)
        """
        rates, decays = self.options.get("rates"), self.options.get("decays")
        return (lr if rates is None else float(rates[place])), (table_decay if decays is None else float(decays[place]))

    def groups(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the groups of tasks, each trained in one model.

        Raises:
            MethodError: an option states another number of rates than there are models, or one that is out of range.
        """
        if "a model per task" not in self.needs:
            return [tuple(tasks)]
        for name, most in (("rates", "above 0"), ("decays", "at least 0")):
            found = self.options.get(name)
            usable = isinstance(found, list) and all(
                math.isfinite(value) and (value > 0 or (value == 0 and name == "decays")) for value in found
            )
            if found is not None and not (usable and len(found) == len(tasks)):
                raise MethodError(
                    f"Method {self.name!r}: expected {name} to hold {len(tasks)} numbers {most}, one for each of "
                    f"{', '.join(tasks)}, such as {name}={'-'.join(['0.01'] * len(tasks))}; found {found!r}."
                )
        return [(task,) for task in tasks]

    def fork_factory(self, tasks: Sequence[str]) -> Callable[[], Module] | None:
        """Return a function that builds a new fork for these tasks; None for the plain sum of gradients."""
        return None if self.fork is None else partial(self.fork, list(tasks), **self._keywords(self.fork, tasks))

    def build_loss_weighting(self, tasks: Sequence[str]) -> LossWeighting | None:
        """Build a weighting of these tasks' losses; None for their plain sum. A preference makes that a weighted sum.

        Raises:
            MethodError: what it learns from is not among the method's needs.
        """
        if self.loss_weighting is None:
            if not self.adds_losses or not self.task_weights or "a model per task" in self.needs:
                return None
            return LossWeighting(tasks, torch.sum, task_weights=self._weights_of(tasks))
        weighting = self.loss_weighting(list(tasks), **self._keywords(self.loss_weighting, tasks))
        for learns, need in (
            (weighting.learns_after_step, "forward after step"), (weighting.learns_after_epoch, "epochs")
        ):  # fmt: skip
            if learns != (need in self.needs):
                raise MethodError(
                    f"Method {self.name!r}: its loss weighting {'learns' if learns else 'does not learn'} from that: "
                    f"expected needs {'with' if learns else 'without'} {need!r}; found {sorted(self.needs)}."
                )
        if weighting.learns_from_gram and self.fork is None:
            raise MethodError(
                f"Method {self.name!r}: its loss weighting learns from gradients at a fork, found none: give the "
                "method a fork too, such as fork=Fork."
            )
        return weighting

    def build_optimizer(
        self,
        base: Optimizer,
        *,
        shared: Sequence[Parameter],
        tasks: Sequence[str],
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> Optimizer:
        """Build the optimizer that steps.

        Args:
            base: holds the parameters that are to be stepped.
            shared: those that several tasks reach.
            data_parallel: the module around the model that trains on several ranks, or their group; None in a single
                process.
        """
        if self.jacobian is not None:
            aggregator = self.jacobian(**self._keywords(self.jacobian, tasks))
            return JacobianDescent(base, aggregator, shared=shared, tasks=tasks, data_parallel=data_parallel)
        if self.optimizer is None:
            return base
        taken = parameters_of(self.optimizer)
        given = {"shared": list(shared), "tasks": list(tasks), "data_parallel": data_parallel}
        given = {name: value for name, value in given.items() if name in taken}
        return self.optimizer(base, **given, **self._keywords(self.optimizer, tasks))

    def backward(self, optimizer: Optimizer, losses: Sequence[Tensor], /) -> None:
        """Add the gradients of a group's losses, one scalar each, to the parameters' ``grad``."""
        if "per-task backward" in self.needs:
            optimizer.backward(list(losses))  # type: ignore[attr-defined]  # the need says that it has one
        else:
            torch.autograd.backward(torch.stack(list(losses)).sum())

    def _keywords(self, factory: Callable[..., Any], tasks: Sequence[str]) -> dict[str, Any]:
        """Return the options of a factory, and the preferences if it takes them."""
        known = keyword_options(factory)
        stated = {name: value for name, value in self.options.items() if name in known}
        if self.task_weights and "task_weights" in parameters_of(factory):
            stated["task_weights"] = self._weights_of(tasks)
        return stated

    def _trial_tasks(self) -> list[str]:
        """Return tasks to check options with: those that are named and others, as many as a list has entries."""
        lengths = [len(value) for value in self.options.values() if isinstance(value, list)]
        stated = [self.options[name] for name in sorted(_NAMES_OF_TASKS & self.options.keys())]
        named = dict.fromkeys([*self.task_weights, *(task for task in stated if task is not None)])
        count = max(lengths, default=max(2, len(named) + 1))
        return [*named, *(f"any task {place}" for place in range(count - len(named)))]

    def _weights_of(self, tasks: Sequence[str]) -> list[float]:
        return [self.task_weights.get(task, 1.0) for task in tasks]

    def _refuse_unknown(self, options: Mapping[str, Any]) -> None:
        known = self.known_options()
        if unknown := sorted(options.keys() - known.keys()):
            raise MethodError(
                f"Method {self.name!r} takes {', '.join(known) or 'no options'}; found {', '.join(unknown)}."
            )


_OF_JACOBIAN: Final = frozenset({"per-task backward", "whole gradients", "whole updates"})

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")  # differs in every process

_NAMES_OF_TASKS: Final = {"target", "primary"}
"""Options whose value is the name of a task."""

_KINDS: Final[Mapping[type, tuple[tuple[type, ...], str]]] = {
    bool: ((bool,), "true or false"), int: ((int,), "a whole number"), float: ((int, float), "a number"),
    str: ((str,), "a word"),
}  # fmt: skip
"""Of a default's type: the types that a value may have, and their name."""
