"""A shared parameter as a joint step sees it: the gradients, the values and the state as matrices of equal
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from equipoise.optim.rules import Count, Options, State, rule_of

__all__ = ["Entry", "OwnState", "entry_of", "touched_rows"]


@dataclass(frozen=True)
class OwnState:
    """Every task keeps its own state: the optimizer's state tensors have a leading dimension of ``count``
    tasks.

    ``tasks`` says to which of them the gradients of a step belong.
    """

    count: int
    tasks: list[int]

    def of_step(self, matrix: Tensor) -> Tensor:
        """The rows of the step's tasks."""
        return matrix if len(self.tasks) == self.count else matrix[self.tasks]


@dataclass(frozen=True)
class Entry:
    """One parameter that has gradients.

    Attributes:
        p: the parameter.
        options: its group in the optimizer.
        kept: what the optimizer is to keep about it.
        count: of the step under way.
        theta: the parameter's elements, shape [1, N].
        state: the rule's state tensors, shape [1, N], or [tasks, N] where every task has its own.
        gradients: one per row of the step, each of shape [1, N].
        reached: one per row of the step: whether there is a gradient.
        touched: None, or, with sparse gradients, the indices of the rows of ``p`` that have any; ``theta``
            and ``state`` are then copies of these rows.
    """

    p: Tensor
    options: Options
    kept: State
    count: Count
    theta: Tensor
    state: State
    gradients: list[Tensor]
    reached: list[bool]
    touched: Tensor | None

    def close(self, own: OwnState | None) -> None:
        """Counts the step and writes back what was copied out."""
        if "step" in self.kept:
            self.kept["step"][... if own is None else own.tasks] += 1
        if self.touched is None:
            return
        self.p.detach().index_copy_(0, self.touched, self.theta.view(-1, *self.p.shape[1:]))
        for name, matrix in self.state.items():
            kept = self.kept[name]
            leading = kept.shape[: kept.dim() - self.p.dim()]
            kept.index_copy_(len(leading), self.touched, matrix.view(*leading, -1, *self.p.shape[1:]))

    def as_gradient(self, row: Tensor) -> Tensor:
        """A row of N elements in the form of the parameter's gradient."""
        if self.touched is None:
            return row.view_as(self.p)
        values = row.view(-1, *self.p.shape[1:])
        return torch.sparse_coo_tensor(
            self.touched.unsqueeze(0), values, self.p.shape, is_coalesced=True, check_invariants=False
        )


def entry_of(
    p: Tensor,
    gradients: Sequence[Tensor | None],
    options: Options,
    *,
    optimizer: Optimizer,
    own: OwnState | None,
) -> Entry:
    """The parameter with its gradients, at least one of which is not None; changes nothing in the optimizer.

    Raises:
        ValueError: sparse gradients that the optimizer cannot take with these options.
    """
    rule = rule_of(optimizer)
    kept: State = optimizer.state.get(p, {})
    names = rule.names(options)
    first = any(kept.get(name) is None for name in names)
    if first:
        kept = rule.initial(p, options)
    if own is not None and any(kept[name].dim() == p.dim() for name in names):
        # Every task begins with what the optimizer knows already.
        kept = {name: value.repeat(own.count, *[1] * value.dim()) for name, value in kept.items()}
    # SGD keeps no count and needs none but for its first step.
    count = _count(kept["step"], own, p.device) if "step" in kept else 1.0 if first else 2.0
    theta, state, touched = p.detach(), {name: kept[name] for name in names}, None
    if any(g is not None and g.is_sparse for g in gradients):
        touched, gradients = touched_rows(p, gradients)
        _check_sparse(p, options, optimizer)
        theta = theta[touched]
        state = {name: value.index_select(value.dim() - p.dim(), touched) for name, value in state.items()}
    size = theta.numel()
    return Entry(
        p=p,
        options=options,
        kept=kept,
        count=count,
        theta=theta.view(1, size),
        state={name: value.view(own.count if own else 1, size) for name, value in state.items()},
        gradients=[theta.new_zeros(1, 1).expand(1, size) if g is None else g.reshape(1, size) for g in gradients],
        reached=[g is not None for g in gradients],
        touched=touched,
    )


def _count(step: Tensor, own: OwnState | None, device: torch.device) -> Count:
    """The number of the step under way from the state's count; never asks an accelerator."""
    if own is not None:
        step = own.of_step(step).unsqueeze(1)
    if step.device.type != "cpu":
        return step.double() + 1
    counts = set(step.flatten().tolist())
    return counts.pop() + 1 if len(counts) == 1 else (step.double() + 1).to(device)


def touched_rows(p: Tensor, gradients: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    """The rows of ``p`` that any gradient touches, and the gradients of these rows."""
    parts = [None if g is None else g.coalesce() if g.is_sparse else g.to_sparse(1) for g in gradients]
    touched = torch.unique(torch.cat([part.indices()[0] for part in parts if part is not None]))
    found: list[Tensor | None] = []
    for part in parts:
        if part is None:
            found.append(None)
            continue
        rows = p.new_zeros(len(touched), *p.shape[1:])
        found.append(rows.index_copy_(0, torch.searchsorted(touched, part.indices()[0]), part.values()))
    return touched, found


def _check_sparse(p: Tensor, options: Options, optimizer: Optimizer) -> None:
    unfit = [name for name in ("momentum", "weight_decay") if options.get(name)]
    if unfit or "betas" in options or "alpha" in options:
        raise ValueError(
            f"The shared parameter of shape {tuple(p.shape)} has sparse gradients, which "
            f"{type(optimizer).__name__}{' with ' + ' and '.join(unfit) if unfit else ''} cannot take. Use SGD without "
            "momentum and weight decay, Adagrad without weight decay, or an embedding with sparse=False."
        )
