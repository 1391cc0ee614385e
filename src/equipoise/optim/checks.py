"""Checks of the arguments of optimizers with ``backward(losses)``, with messages that say what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from equipoise.optim.clippy import Clippy
from equipoise.optim.task_names import Losses, loss_list
from equipoise.optim.wrapper import Wrapper
from equipoise.per_sample import have_per_sample_gradients

__all__ = ["check_groups", "check_not_per_sample", "check_shared", "check_unwrapped", "distinct", "losses_in_order"]


def losses_in_order(losses: Losses, tasks: tuple[str, ...], name: str) -> tuple[list[Tensor | None], tuple[str, ...]]:
    """Return one scalar per task in the order of the tasks, None for those that are absent, and the tasks' names.

    Args:
        losses: as ``backward`` was given them.
        tasks: the names; empty where they are not known yet.
        name: the optimizer's.

    Raises:
        TypeError: ``losses`` has no order, or an entry is neither a tensor nor None.
        ValueError: the number of losses has changed, a name is not known, or a loss is not a scalar.
    """
    found, names = loss_list(losses, tasks)
    if tasks and len(found) != len(tasks):
        raise ValueError(
            f"{name}.backward expected {len(tasks)} losses, as from the start, found {len(found)}. Pass None "
            "for a task that is absent in this step."
        )
    return scalars_of(found, names), names


def scalars_of(losses: Sequence[Any], tasks: Sequence[str]) -> list[Tensor | None]:
    """Return one scalar per task, None for those that are absent.

    Raises:
        TypeError: an entry is neither a tensor nor None.
        ValueError: there is no loss, or one is not a scalar.
    """
    if not losses:
        raise ValueError("losses must hold one scalar per task, found none.")
    names = tasks if len(tasks) == len(losses) else [str(task) for task in range(len(losses))]
    found: list[Tensor | None] = []
    for task, loss in zip(names, losses, strict=True):
        if loss is not None and not isinstance(loss, Tensor):
            raise TypeError(
                f"The loss of task {task} must be a tensor, or None; found {type(loss).__name__}. Pass None for a task "
                "that is absent in this step."
            )
        if loss is not None and loss.numel() != 1:
            raise ValueError(
                f"The loss of task {task} must be a scalar, found shape {tuple(loss.shape)}. Average it over the batch."
            )
        found.append(loss if loss is not None and loss.requires_grad else None)
    return found


def distinct(shared: Iterable[Parameter]) -> list[Parameter]:
    """Return each parameter once, in order."""
    if isinstance(shared, Tensor):
        raise TypeError("shared must be a list of parameters, found one tensor: put it into a list.")
    return list({id(p): p for p in shared}.values())


def check_shared(shared: Sequence[Parameter], groups: Sequence[dict[str, Any]]) -> None:
    """Refuse shared parameters that are sharded, that the optimizer lacks, or that lie on several devices."""
    if not shared:
        raise ValueError("shared must hold the parameters that all tasks use, found none.")
    known = {id(p) for group in groups for p in group["params"]}
    for p in shared:
        if not isinstance(p, Tensor) or id(p) not in known:
            found = f"a tensor of shape {tuple(p.shape)}" if isinstance(p, Tensor) else type(p).__name__
            raise ValueError(
                f"Every shared parameter must be one of the optimizer's, found {found} that is not. Give the optimizer "
                "all parameters of the model (and `shared` parameters, not their names)."
            )
        if hasattr(p, "placements"):  # a DTensor, whose module is slow to import
            raise TypeError(
                f"A step needs every task's whole gradient, found a shared parameter of shape {tuple(p.shape)} that is "
                "sharded over ranks (FSDP2). Train with DistributedDataParallel, or balance at a fork, for instance "
                "with MultiBalance."
            )
        if not p.is_floating_point():
            raise ValueError(
                f"Shared parameters must be real, found one of shape {tuple(p.shape)} and dtype {p.dtype}. Leave it "
                "out of `shared`."
            )
    if len({p.device for p in shared}) > 1:
        devices = ", ".join(sorted({str(p.device) for p in shared}))
        raise ValueError(f"Shared parameters must be on one device, found {devices}.")


def check_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Refuse options whose value is a tensor on a device, and options that a step does not support."""
    for group in groups:
        for name, value in group.items():
            if name == "params":
                continue
            tensors = [value] if isinstance(value, Tensor) else value if isinstance(value, tuple) else []
            if any(isinstance(part, Tensor) for part in tensors):
                raise TypeError(f"{name} must be a number, found a tensor: its value would have to be waited for.")
        if group.get("capturable") or group.get("differentiable"):
            raise ValueError("capturable=True and differentiable=True are not supported, found one of them.")


def check_not_per_sample(groups: Sequence[dict[str, Any]], name: str) -> None:
    """Refuse parameters of a model whose per-sample gradients Opacus clips; ``name`` is that of the optimizer.

    Raises:
        RuntimeError: there is such a parameter.
    """
    if have_per_sample_gradients(parameter for group in groups for parameter in group["params"]):
        raise RuntimeError(
            f"{name} weighs the tasks' updates by the gradients of the whole batch, and Opacus replaces the gradients "
            "by clipped and noisy sums: its weights would be lost, or leak what the noise should hide. Train with an "
            "ordinary optimizer, and fixed weights of the tasks; docs/privacy.md says more."
        )


def check_unwrapped(optimizer: Optimizer, name: str) -> None:
    """Refuse an optimizer that something else than Clippy wraps; ``name`` is that of the wrapper to be."""
    if isinstance(optimizer, Wrapper) and not isinstance(optimizer, Clippy):
        raise TypeError(
            f"{name} wraps a torch.optim optimizer or Clippy, found {type(optimizer).__name__}. To balance its updates "
            f"write PUB({name}(...))."
        )
