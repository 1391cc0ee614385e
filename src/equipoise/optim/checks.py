"""What optimizers that take one loss per task refuse, with what was expected, found and is to be done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

__all__ = ["check_groups", "check_reachable", "check_shared", "distinct", "scalars_of"]


def scalars_of(losses: Sequence[Tensor | None] | Tensor) -> list[Tensor | None]:
    """One scalar per task, None for those that are absent."""
    if isinstance(losses, Tensor):
        if losses.dim() != 1 or not losses.requires_grad:
            raise ValueError(
                "losses must be a list of scalars, or a tensor of shape [tasks] that requires grad; found a tensor of "
                f"shape {tuple(losses.shape)}{'' if losses.requires_grad else ' that does not require grad'}."
            )
        return list(losses.unbind())
    if not losses:
        raise ValueError("losses must hold one scalar per task, found none.")
    found: list[Tensor | None] = []
    for task, loss in enumerate(losses):
        if loss is not None and not isinstance(loss, Tensor):
            raise TypeError(f"The loss of task {task} must be a tensor, or None; found {type(loss).__name__}.")
        if loss is not None and loss.numel() != 1:
            raise ValueError(
                f"The loss of task {task} must be a scalar, found shape {tuple(loss.shape)}. Average it over the batch."
            )
        found.append(loss if loss is not None and loss.requires_grad else None)
    return found


def check_reachable(losses: Iterable[Tensor]) -> None:
    """Reentrant checkpoints hide the parameters behind them from a pass that asks for these parameters' gradients."""
    nodes = [loss.grad_fn for loss in losses]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                "A step needs the tasks' gradients of the shared parameters, found activation checkpointing of the "
                "reentrant kind, which hides them. Pass use_reentrant=False to torch.utils.checkpoint (Hugging Face: "
                "gradient_checkpointing_kwargs={'use_reentrant': False})."
            )
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                nodes.append(following)


def distinct(shared: Iterable[Parameter]) -> list[Parameter]:
    """Each parameter once, in order."""
    if isinstance(shared, Tensor):
        raise TypeError("shared must be a list of parameters, found one tensor: put it into a list.")
    return list({id(p): p for p in shared}.values())


def check_shared(shared: Sequence[Parameter], groups: Sequence[dict[str, Any]]) -> None:
    """Shared parameters must be whole tensors of the optimizer's, on one device."""
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
        if not p.is_floating_point() or not p.is_contiguous():
            raise ValueError(
                f"Shared parameters must be real and contiguous, found one of shape {tuple(p.shape)}, dtype {p.dtype} "
                f"and strides {p.stride()}."
            )
    if len({p.device for p in shared}) > 1:
        devices = ", ".join(sorted({str(p.device) for p in shared}))
        raise ValueError(f"Shared parameters must be on one device, found {devices}.")


def check_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Options that a step would have to wait for the device for, or that it does not know."""
    for group in groups:
        for name, value in group.items():
            if name == "params":
                continue
            tensors = [value] if isinstance(value, Tensor) else value if isinstance(value, tuple) else []
            if any(isinstance(part, Tensor) for part in tensors):
                raise TypeError(f"{name} must be a number, found a tensor: its value would have to be waited for.")
        if group.get("capturable") or group.get("differentiable"):
            raise ValueError("capturable=True and differentiable=True are not supported, found one of them.")
