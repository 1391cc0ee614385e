"""The tasks' names, by which losses are given and saved state is matched."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Losses", "check_names", "loss_list", "places_by_name", "unnamed"]

Losses = Mapping[str, Tensor | None] | Iterable[Tensor | None] | Tensor
"""One scalar per task: by name, in a list, or as one tensor of shape [M]."""


def check_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        TypeError: they are one string.
        ValueError: there is none, or two are equal.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks must be a list of names, found one string: write [{tasks!r}].")
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks must be names that differ, at least one; found {list(tasks)}.")
    return tuple(tasks)


def unnamed(tasks: Sequence[str]) -> bool:
    """Tell whether the names are the defaults: "0", "1", and so on."""
    return list(tasks) == [str(number) for number in range(len(tasks))]


def loss_list(losses: Losses, tasks: Sequence[str]) -> tuple[list[Any], tuple[str, ...]]:
    """Return the losses in the order of the tasks, and the tasks' names.

    Args:
        losses: as ``backward`` was given them.
        tasks: the names; empty where they are not known yet. A mapping then says them.

    Raises:
        TypeError: ``losses`` is no collection with an order.
        ValueError: a mapping has a name that is not among the tasks.
    """
    if isinstance(losses, Tensor):
        if losses.dim() != 1 or not losses.requires_grad:
            raise ValueError(
                "losses must be a list of scalars, a dict of them by task, or a tensor of shape [tasks] that requires "
                f"grad; found a tensor of shape {tuple(losses.shape)}"
                f"{'' if losses.requires_grad else ' that does not require grad'}. Pass the tasks' losses one by one, "
                "not their sum."
            )
        found: list[Any] = list(losses.unbind())
    elif isinstance(losses, Mapping):
        names = tuple(tasks) or check_names(tuple(losses))
        if strange := [name for name in losses if name not in names]:
            raise ValueError(
                f"losses must be named after the tasks ({', '.join(names)}), found {', '.join(map(repr, strange))}. "
                + (
                    "Give the optimizer their names: tasks=[...]."
                    if unnamed(names)
                    else "Leave out a task that is absent in this step, or give it None."
                )
            )
        return [losses.get(name) for name in names], names
    elif isinstance(losses, str | set | frozenset) or not isinstance(losses, Iterable):
        raise TypeError(
            f"losses must be a list of scalars, a dict of them by task, or a tensor of shape [tasks], found "
            f"{type(losses).__name__}. Pass one loss per task, always in the same order."
        )
    else:
        found = list(losses)
    return found, tuple(tasks) or tuple(str(number) for number in range(len(found)))


def places_by_name(saved: Sequence[str], tasks: Sequence[str], kind: str) -> list[int | None]:
    """Return for each task its place among the saved ones, None for a new one, which starts fresh.

    If either side has default names, tasks are matched by place. A warning names saved tasks that no longer exist.

    Args:
        kind: the optimizer's, for the messages.

    Raises:
        ValueError: names cannot decide, and the numbers of tasks differ.
    """
    if unnamed(saved) or unnamed(tasks):
        if len(saved) != len(tasks):
            raise ValueError(
                f"Expected the state of {len(tasks)} tasks ({', '.join(tasks)}), found that of {len(saved)} "
                f"({', '.join(saved)}). Give {kind} the names on both sides (tasks=[...]), so that tasks are matched "
                "by name."
            )
        return list(range(len(saved)))
    if lost := [name for name in saved if name not in tasks]:
        warnings.warn(
            f"{kind} leaves out the saved state of tasks that it does not have: {', '.join(lost)} (it has "
            f"{', '.join(tasks)}).",
            stacklevel=4,
        )
    return [saved.index(name) if name in saved else None for name in tasks]
