"""Models by name, with their options and a check of their output; open to other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from equipoise.errors import SettingError
from equipoise.forks import Fork
from equipoise.ranking.models.aitm import AITM
from equipoise.ranking.models.base import ForkFactory, Unforked, refuse_fork
from equipoise.ranking.models.escm2 import ESCM2
from equipoise.ranking.models.esmm import ESMM
from equipoise.ranking.models.home import HoME
from equipoise.ranking.models.mmoe import MMoE
from equipoise.ranking.models.own import OwnModel, says_where_to_fork
from equipoise.ranking.models.ple import PLE
from equipoise.ranking.models.presets import PRESETS
from equipoise.ranking.models.shared_bottom import SharedBottom
from equipoise.ranking.models.star import STAR
from equipoise.ranking.models.stem import STEM
from equipoise.ranking.models.trial import first_line, in_form_of_training, trial_outputs
from equipoise.ranking.options import checked_options
from equipoise.registry import Registry
from equipoise.schema import Schema

__all__ = ["MODELS", "ModelBuilder", "build_model", "name_of", "register"]

ModelBuilder = Callable[..., nn.Module]
"""Builds a module that takes (categorical, numeric), of shapes [B, F] and [B, N], and returns one output per task. A
parameter ``schema`` is given the schema, a parameter ``fork`` a function that builds a fork, to be called once for
each fork; all other parameters are options."""


def _model_builder(_: str, found: Any) -> ModelBuilder:
    if isinstance(found, nn.Module):
        raise TypeError(
            f"expected a class or function that builds the model, found a {type(found).__name__} that is built: every "
            "training starts from new weights."
        )
    if not callable(found):
        raise TypeError(f"expected a class or function that builds the model, found a {type(found).__name__}.")
    builder: ModelBuilder = found
    return builder


MODELS: Final = Registry[ModelBuilder](
    "model",
    "equipoise.models",
    own={
        "shared-bottom": SharedBottom,
        "mmoe": MMoE,
        "ple": PLE,
        "esmm": ESMM,
        "escm2": ESCM2,
        "aitm": AITM,
        "stem": STEM,
        "home": HoME,
        "star": STAR,
        **{name: preset.builder() for name, preset in PRESETS.items()},
    },
    adapt=_model_builder,
)
"""The models by name; iterating gives the names. Other packages add theirs by :func:`register`, or by an entry point in
the group ``equipoise.models``."""

register = MODELS.register


def build_model(name: str, schema: Schema, *, fork: ForkFactory | None = None, **options: Any) -> nn.Module:
    """Build a model by its name, place its fork if it only says where, and check its output once.

    Args:
        name: one of :data:`MODELS`, or an import path such as ``"package.module:Class"``.
        schema: the features and the tasks.
        fork: builds a fork; None: the tasks' gradients simply add up.
        options: keyword options of the model's signature.

    Returns:
        A module that takes (categorical, numeric) and returns one tensor of shape [B] per task.

    Raises:
        SettingError: there is no model of that name, an option is not known, of another kind than its default or out
            of range, the model does not return one output per task, or a fork is asked for and the model neither
            places one nor says where.

    Example:
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> model = build_model("mmoe", Schema([Categorical("user", 9)], [], [Task("click")]), experts=2)
        >>> type(model).__name__
        'MMoE'
    """
    refuse_fork(fork)
    builder = MODELS[name]
    what = f"Model {name!r}"
    options = checked_options(what, builder, options, given={"schema", "fork"})
    forks = _CountedCalls(fork or partial(Unforked, len(schema.tasks)))
    given = {key: value for key, value in {"schema": schema, "fork": forks}.items() if _takes(builder, key)}
    try:
        model = builder(**given, **options)
    except (ValueError, RuntimeError) as error:  # a size that is too small, or too large
        raise SettingError(f"{what}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise SettingError(f"{what}: expected a torch.nn.Module, found a {type(model).__name__}.")
    with torch.no_grad():
        if not forks.calls:
            model = _forked(model, schema, forks, what, asked=fork is not None)
        if not in_form_of_training(model, schema, name=name):
            model = OwnModel(model, schema, None)
    return model


def name_of(model: ModelBuilder, /) -> str:
    """Return the name under which worker processes and saved rankers find a model: its import path if it has one.

    A class or function of the script itself or of a notebook is registered under its own name.

    Raises:
        SettingError: it has no name, as a lambda, or is a module that is built already.

    Example:
        >>> name_of(SharedBottom)
        'equipoise.ranking.models.shared_bottom:SharedBottom'
    """
    module, name = getattr(model, "__module__", ""), getattr(model, "__qualname__", "")
    if not name or "<" in name:
        raise SettingError(
            f"model: expected a name, an import path, or a class or function at the top level of a module, found "
            f"{repr(model)[:80]}: worker processes and saved rankers could not find it."
        )
    if module and module != "__main__":
        return f"{module}:{name}"
    MODELS.register(name, model, replace=True)
    return name


def _takes(builder: ModelBuilder, parameter: str) -> bool:
    parameters = inspect.signature(builder).parameters
    # A module without a constructor has that of nn.Module, which seems to take anything.
    takes_any = getattr(builder, "__init__", None) is not nn.Module.__init__ and any(
        entry.kind is inspect.Parameter.VAR_KEYWORD for entry in parameters.values()
    )
    return parameter in parameters or takes_any


class _CountedCalls:
    """A factory of forks that counts them."""

    def __init__(self, factory: ForkFactory) -> None:
        self.factory = factory
        self.calls = 0

    def __call__(self) -> nn.Module:
        self.calls += 1
        return self.factory()


def _forked(model: nn.Module, schema: Schema, forks: ForkFactory, what: str, *, asked: bool) -> nn.Module:
    """Place the fork of a model that has placed none of those it was given.

    A model that says where is called in the same way without a fork, so that the numbers of all methods compare.
    """
    cls, tasks = type(model).__name__, ", ".join(schema.task_names)
    if own := [name for name, part in model.named_modules() if isinstance(part, Fork)]:
        raise SettingError(
            f"{what} holds a fork of its own ({own[0] or cls}), by which every method would be balanced. Let "
            f"{cls}.__init__ take `fork` and call it: self.{own[0] or 'fork'} = fork()."
        )
    if says_where_to_fork(model):
        return _forked_where_it_says(model, schema, forks, what)
    if asked:
        raise SettingError(
            f"{what} places no fork, but the method balances at one. Either let {cls}.__init__ take `fork`, keep "
            f"self.fork = fork(), and read one branch per task in forward: {tasks} = self.fork(shared). Or give {cls} "
            f"a method representation(categorical, numeric), which returns what all tasks read, and self.heads, a "
            f"ModuleDict or ModuleList with a module for each of {tasks} that is called with it; the fork is then "
            "placed between them. Methods such as equal and pub need no fork."
        )
    return model


def _forked_where_it_says(model: Any, schema: Schema, forks: ForkFactory, what: str) -> OwnModel:
    heads, tasks = model.heads, schema.task_names
    found = list(heads) if isinstance(heads, nn.ModuleDict) else [str(place) for place in range(len(heads))]
    if len(found) != len(tasks) or (isinstance(heads, nn.ModuleDict) and set(found) != set(tasks)):
        raise SettingError(
            f"{what}: expected in heads one module for each task ({', '.join(tasks)}), found {', '.join(found)}."
        )
    forked = OwnModel(model, schema, forks())
    ahead = trial_outputs(forked, schema, name=what.removeprefix("Model "))
    if type(model).forward is not nn.Module.forward:
        for task, own, other in zip(tasks, trial_outputs(model, schema), ahead, strict=True):
            if not torch.allclose(own, other, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise SettingError(
                    f"{what}: for {task!r}, forward returns something else than the head on what representation "
                    "returns. The fork stands between these two, and forward is not called: let it return the same, "
                    f"or leave it out. Or let {type(model).__name__}.__init__ take `fork` and place it there."
                )
    return forked
