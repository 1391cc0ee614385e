"""The names of a fork's tasks, by which saved state is matched to tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

__all__ = ["by_name", "encode_names", "names_key", "task_names"]


def task_names(tasks: int | Sequence[str]) -> tuple[str, ...]:
    """Return the names of tasks, given their number or the names.

    Raises:
        ValueError: there is none, or one is empty or occurs twice.
    """
    if isinstance(tasks, int) and not isinstance(tasks, bool):
        names: tuple[str, ...] = tuple(str(task) for task in range(tasks))
    elif isinstance(tasks, Iterable) and not isinstance(tasks, str | bytes):
        names = tuple(tasks)
    else:
        hint = f": write [{tasks!r}]" if isinstance(tasks, str) else ""
        raise ValueError(f"tasks must be a whole number or a list of names, found {tasks!r}{hint}.")
    if not names:
        raise ValueError(f"A fork needs at least one task, found tasks={tasks!r}.")
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"Tasks' names must be non-empty strings, found {names!r}.")
    if len(set(names)) < len(names):
        raise ValueError(f"Tasks' names must differ, found {names!r}.")
    return names


def encode_names(tasks: Sequence[str]) -> Tensor:
    """Return names as a tensor of bytes, which every tool that saves a state dict can save."""
    return torch.frombuffer(bytearray(json.dumps(list(tasks)), "utf-8"), dtype=torch.uint8).clone()


def names_key(prefix: str) -> str:
    """Return the key of a module's names in a state dict."""
    return prefix + _EXTRA_STATE_KEY_SUFFIX


def by_name(
    state_dict: Mapping[str, Any],
    prefix: str,
    own: Mapping[str, Tensor],
    tasks: tuple[str, ...],
    task_dims: Mapping[str, tuple[int, ...]],
    *,
    modules: Sequence[str],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the saved entries of a fork in the order of ``tasks``, and the tasks that they were saved for.

    Args:
        state_dict: of the fork, or of a model that holds it.
        prefix: of the fork's keys in it.
        own: the fork's entries in their reset state.
        tasks: the fork's tasks.
        task_dims: for each entry its dimensions that run over tasks.
        modules: the names of modules in the fork.

    Returns:
        The saved entries, with the values of ``own`` for tasks that were not saved; the saved tasks' names.

    Raises:
        ValueError: names are missing or damaged, or an entry cannot be matched by them.
    """
    saved = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
    if names_key(prefix) not in state_dict:
        if saved:
            raise ValueError(
                f"the names of its tasks are missing ({names_key(prefix)!r}): save them too, or leave out all of the "
                "fork's entries, and it starts afresh"
            )
        return {}, tasks
    saved_tasks = _names_in(state_dict[names_key(prefix)])
    if saved_tasks == tasks:
        return saved, tasks
    nameless = [key for key in state_dict for module in modules if key.startswith(f"{prefix}{module}.")]
    if nameless:
        raise ValueError(
            f"it was saved for {', '.join(saved_tasks)} and is for {', '.join(tasks)}, and {nameless[0]!r} cannot be "
            "matched by their names: list the same tasks in the same order"
        )
    return _fit(saved, own, saved_tasks, tasks, task_dims), saved_tasks


def _names_in(encoded: object) -> tuple[str, ...]:
    """Return the names that :func:`encode_names` was given.

    Raises:
        ValueError: this is something else.
    """
    try:
        names = json.loads(bytes(encoded.cpu().tolist())) if isinstance(encoded, Tensor) else None
    except (ValueError, TypeError, OverflowError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected the names of a fork's tasks as bytes, found {type(encoded).__name__}")
    return tuple(names)


def _fit(
    saved: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    saved_tasks: Sequence[str],
    tasks: Sequence[str],
    task_dims: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """Return entries saved for other tasks, or in another order, with fresh values for tasks that were not saved."""
    kept = [task for task in saved_tasks if task in tasks]
    old = torch.tensor([saved_tasks.index(task) for task in kept], dtype=torch.int64)
    new = torch.tensor([tasks.index(task) for task in kept], dtype=torch.int64)
    fitted = {}
    for name, value in saved.items():
        if name not in task_dims:
            raise ValueError(f"{name!r} is not in the fork's task_dims, which says its dimensions over tasks")
        dims = task_dims[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} is no tensor, found {type(value).__name__}")
        if value.dim() != fresh[name].dim() or any(value.shape[dim] != len(saved_tasks) for dim in dims):
            raise ValueError(f"{name!r} has the shape {list(value.shape)} for {len(saved_tasks)} tasks")
        fitted[name] = _moved(value, fresh[name].to(value.device), dims, old.to(value.device), new.to(value.device))
    return fitted


def _moved(saved: Tensor, fresh: Tensor, dims: Sequence[int], old: Tensor, new: Tensor) -> Tensor:
    if not dims:
        return saved
    dim, *rest = dims
    part = _moved(saved.index_select(dim, old), fresh.index_select(dim, new), rest, old, new)
    return fresh.index_copy(dim, new, part.to(fresh.dtype))
