"""A trial prediction, which says what is wrong with a model before it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.ranking.embedding import columns_of
from equipoise.ranking.models.own import outputs_by_task
from equipoise.schema import Schema

__all__ = ["first_line", "in_form_of_training", "trial_outputs"]


def trial_outputs(model: nn.Module, schema: Schema, *, name: str = "") -> list[Tensor]:
    """Predict a few rows in evaluation mode; return one output per task, shape [rows] each.

    The model and the random state are left as they were. Gradients are recorded where they are enabled.

    Args:
        model: returns its outputs in any form that :func:`outputs_by_task` takes.
        schema: the features and the tasks.
        name: the model's name in messages; its class if empty.

    Raises:
        SettingError: the model fails, or returns something else.
    """
    found = _predicted(model, schema, name)
    return list(outputs_by_task(found, schema.task_names))


def in_form_of_training(model: nn.Module, schema: Schema, *, name: str = "") -> bool:
    """Return whether a model returns a tuple or list of tensors of shape [B], as training reads them.

    Raises:
        SettingError: as :func:`trial_outputs`.
    """
    found = _predicted(model, schema, name)
    return isinstance(found, Sequence) and all(output.dim() == 1 for output in found)


def first_line(error: Exception, /) -> str:
    """Return the first line of what an error says, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _predicted(model: nn.Module, schema: Schema, name: str) -> Any:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    rows = 2 if len(schema.tasks) != 2 else 3  # another number than that of the tasks, to tell the dimensions apart
    generator = torch.Generator().manual_seed(0)
    ids = [
        torch.randint(feature.cardinality, (rows, columns_of(feature)), generator=generator)
        for feature in schema.categorical
    ]
    categorical = torch.cat([torch.empty(rows, 0, dtype=torch.int64), *ids], 1).to(device)
    numeric = torch.randn(rows, len(schema.numeric_columns), generator=generator).to(device)
    what = f"Model {name or type(model).__name__!r}"
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        found = model(categorical, numeric)
    except Exception as error:
        raise SettingError(
            f"{what} fails on a batch of {rows} rows (categorical {list(categorical.shape)} int64, "
            f"numeric {list(numeric.shape)} float32) with {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    if not _is_right(found, schema.task_names, rows):
        raise SettingError(
            f"{what} should return one floating point tensor of shape [B] or [B, 1] per task, in the order "
            f"{', '.join(schema.task_names)} or by name, or one of shape [B, {len(schema.tasks)}]; for B = {rows} it "
            f"returned {_in_words(found)}. {_advice(found, schema.task_names, rows)}"
        )
    return found


def _is_right(found: object, tasks: Sequence[str], rows: int) -> bool:
    if isinstance(found, Tensor):
        return found.shape == (rows, len(tasks)) and found.is_floating_point()
    if isinstance(found, Mapping):
        found = [found.get(task) for task in tasks]
    return (
        isinstance(found, Sequence)
        and len(found) == len(tasks)
        and all(isinstance(output, Tensor) and output.is_floating_point() for output in found)
        and all(output.shape in ((rows,), (rows, 1)) for output in found)
    )


def _in_words(found: object) -> str:
    if isinstance(found, Tensor):
        return f"one tensor of shape {list(found.shape)} {found.dtype}"
    if isinstance(found, Mapping):
        return f"a {type(found).__name__} with {', '.join(f'{key!r}: {_part(value)}' for key, value in found.items())}"
    if isinstance(found, Sequence) and not isinstance(found, str):
        return f"{len(found)} values: {', '.join(map(_part, found)) or 'none'}"
    return f"a {type(found).__name__}"


def _part(value: object) -> str:
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)[:40]


def _advice(found: object, tasks: Sequence[str], rows: int) -> str:
    if isinstance(found, Tensor) and found.shape == (len(tasks), rows):
        return "Return torch.stack(outputs, dim=1)."
    if isinstance(found, Mapping) and (missing := [task for task in tasks if task not in found]):
        return f"There is none for {', '.join(missing)}."
    return "Return one output per row and task: of a binary task the logit, before the sigmoid."
