"""Models by name, with their options and a check of their output; open to other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.ranking.models.aitm import AITM
from equipoise.ranking.models.base import ForkFactory, Unforked
from equipoise.ranking.models.escm2 import ESCM2
from equipoise.ranking.models.esmm import ESMM
from equipoise.ranking.models.home import HoME
from equipoise.ranking.models.mmoe import MMoE
from equipoise.ranking.models.ple import PLE
from equipoise.ranking.models.presets import PRESETS
from equipoise.ranking.models.shared_bottom import SharedBottom
from equipoise.ranking.models.star import STAR
from equipoise.ranking.models.stem import STEM
from equipoise.ranking.options import checked_options
from equipoise.registry import Registry
from equipoise.schema import Schema

__all__ = ["MODELS", "ModelBuilder", "build_model", "register", "trial_logits"]

ModelBuilder = Callable[..., nn.Module]
"""``build(schema=..., fork=..., **options)`` returns a module that takes (categorical, numeric), of shapes [B, F] and
[B, N], and returns one tensor of logits, shape [B], per task. ``fork()`` builds a fork; call it for each one needed.
"""

_TRIAL_ROWS: Final = 2


def _model_builder(_: str, found: Any) -> ModelBuilder:
    parameters = inspect.signature(found).parameters if callable(found) else {}
    takes_any = any(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in parameters.values())
    if "schema" not in parameters or not ("fork" in parameters or takes_any):
        what = f"one that takes ({', '.join(parameters)})" if callable(found) else f"a {type(found).__name__}"
        raise TypeError(f"expected a class or function that takes (schema, fork), found {what}.")
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
    """Build a model by its name, and check its output once.

    Args:
        name: one of :data:`MODELS`, or an import path such as ``"package.module:Class"``.
        schema: the features and the tasks.
        fork: builds a fork; None: the tasks' gradients simply add up.
        options: keyword options of the model's signature.

    Raises:
        SettingError: there is no model of that name, an option is not known, of another kind than its default or out
            of range, or the model does not return one tensor of logits, shape [B], per task.

    Example:
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> model = build_model("mmoe", Schema([Categorical("user", 9)], [], [Task("click")]), experts=2)
        >>> type(model).__name__
        'MMoE'
    """
    builder = MODELS[name]
    keywords = checked_options(f"Model {name!r}", builder, options, given={"schema", "fork"})
    try:
        model = builder(schema=schema, fork=fork or partial(Unforked, len(schema.tasks)), **keywords)
    except (ValueError, RuntimeError) as error:  # a size that is too small, or too large
        raise SettingError(f"Model {name!r}: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise SettingError(f"Model {name!r}: expected a torch.nn.Module, found a {type(model).__name__}.")
    with torch.no_grad():
        trial_logits(model, schema, name=name)
    return model


def trial_logits(model: nn.Module, schema: Schema, *, name: str = "") -> list[Tensor]:
    """Predict two rows of zeros in evaluation mode; returns one tensor of logits, shape [2], per task.

    The model is left as it was. Gradients are recorded where they are enabled.

    Raises:
        SettingError: the model fails, or returns something else.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    categorical = torch.zeros(_TRIAL_ROWS, len(schema.categorical_columns), dtype=torch.int64, device=device)
    numeric = torch.zeros(_TRIAL_ROWS, len(schema.numeric_columns), device=device)
    what = f"Model {name or type(model).__name__!r}"
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        found = model(categorical, numeric)
    except Exception as error:
        raise SettingError(
            f"{what} fails on a batch of {_TRIAL_ROWS} rows of zeros (categorical {list(categorical.shape)} int64, "
            f"numeric {list(numeric.shape)} float32) with {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    logits = list(found) if isinstance(found, Sequence) else []
    right = all(isinstance(logit, Tensor) and logit.shape == (_TRIAL_ROWS,) for logit in logits)
    if len(logits) != len(schema.tasks) or not right or not all(logit.is_floating_point() for logit in logits):
        raise SettingError(
            f"{what} should return a tuple with one floating point tensor of logits of shape [B] per task "
            f"({', '.join(schema.task_names)}); for B = {_TRIAL_ROWS} it returned {_in_words(found)}. "
            f"{_advice(found, len(schema.tasks))}"
        )
    return logits


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _in_words(found: object) -> str:
    if isinstance(found, Tensor):
        return f"one tensor of shape {list(found.shape)}"
    if isinstance(found, Sequence) and not isinstance(found, str):
        parts = [f"{list(part.shape)} {part.dtype}" if isinstance(part, Tensor) else repr(part)[:40] for part in found]
        return f"{len(found)} values: {', '.join(parts) or 'none'}"
    if isinstance(found, Mapping):
        return f"a {type(found).__name__} with the keys {', '.join(map(repr, found))}"
    return f"a {type(found).__name__}"


def _advice(found: object, tasks: int) -> str:
    if isinstance(found, Tensor) and found.shape == (_TRIAL_ROWS, tasks):
        return "Return logits.unbind(dim=1)."
    if isinstance(found, Mapping):
        return "Return tuple(logits[task] for task in schema.task_names)."
    shapes = [part.shape for part in found if isinstance(part, Tensor)] if isinstance(found, Sequence) else []
    if shapes and all(shape == (_TRIAL_ROWS, 1) for shape in shapes):
        return "Return logit.squeeze(1) for each task."
    return "Return one logit per row and task, before the sigmoid."
