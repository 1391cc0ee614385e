"""A shared parameter in a joint step: its gradients, values and state as matrices of equal width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from equipoise.optim.host_counts import HostCounts
from equipoise.optim.rules import Options, State, rule_of

__all__ = ["Entry", "OwnState", "entry_of", "rows_index", "touched_rows"]


@dataclass(frozen=True)
class OwnState:
    """Every task keeps its own state: the optimizer's state tensors have a leading dimension of ``count`` tasks.

    Attributes:
        count: the number of tasks.
        tasks: the tasks of the step's gradients.
    """

    count: int
    tasks: list[int]

    def of_step(self, matrix: Tensor) -> Tensor:
        """Return the rows of the step's tasks."""
        if len(self.tasks) == self.count:
            return matrix
        return matrix.index_select(0, rows_index(self.tasks, self.count, matrix.device))

    def put(self, matrix: Tensor, rows: Tensor) -> None:
        """Write the rows of the step's tasks into the matrix."""
        if len(self.tasks) == self.count:
            matrix.copy_(rows)
        else:
            matrix.index_copy_(0, rows_index(self.tasks, self.count, matrix.device), rows.to(matrix.dtype))


def rows_index(rows: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Return the numbers of some out of ``count`` rows, created on the device to avoid a host sync."""
    every = torch.arange(count, device=device)
    return torch.cat([every[row : row + 1] for row in rows])


@dataclass(frozen=True)
class Entry:
    """One parameter that has gradients.

    Attributes:
        p: the parameter.
        options: its group in the optimizer.
        kept: its entry in the optimizer's state.
        count: the number of the step under way; one per gradient if they differ.
        theta: the parameter's elements, shape [1, N].
        state: the rule's state tensors, shape [1, N], or [tasks, N] where every task has its own.
        gradients: one gradient per row of the step, each of shape [1, N].
        reached: for each row of the step, whether there is a gradient.
        touched: None, or, with sparse gradients, the indices of the rows of ``p`` that have any; ``theta``
            and ``state`` are then copies of these rows. Tensors that are not contiguous in memory are copied, too.
    """

    p: Tensor
    options: Options
    kept: State
    count: float | tuple[float, ...]
    theta: Tensor
    state: State
    gradients: list[Tensor]
    reached: list[bool]
    touched: Tensor | None

    def close(self, own: OwnState | None) -> None:
        """Count the step, and write copied values back."""
        if "step" in self.kept:
            step = self.kept["step"]
            if own is None:
                step += 1
            else:
                own.put(step, own.of_step(step) + 1)
        if self.touched is None:
            for place, flat in (
                (self.p.detach(), self.theta),
                *((self.kept[name], self.state[name]) for name in self.state),
            ):
                if not place.is_contiguous():
                    place.copy_(flat.view(place.shape))
            return
        self.p.detach().index_copy_(0, self.touched, self.theta.view(-1, *self.p.shape[1:]))
        for name, matrix in self.state.items():
            kept = self.kept[name]
            leading = kept.shape[: kept.dim() - self.p.dim()]
            kept.index_copy_(len(leading), self.touched, matrix.view(*leading, -1, *self.p.shape[1:]))

    def as_gradient(self, row: Tensor) -> Tensor:
        """Return a row of N elements as a gradient of the parameter, in its shape and memory layout."""
        if self.touched is None:
            gradient = row.view(self.p.shape)
            return gradient if self.p.is_contiguous() else torch.empty_like(self.p).copy_(gradient)
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
    counts: HostCounts,
) -> Entry:
    """Return the parameter with its gradients, at least one of which is not None; changes nothing in the optimizer.

    If some gradients are sparse and others dense, all are made dense.

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
    count = _count(kept["step"], own, counts) if "step" in kept else 1.0 if first else 2.0
    if len({g.is_sparse for g in gradients if g is not None}) == 2:
        gradients = [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]
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
        theta=theta.reshape(1, size),
        state={name: value.reshape(own.count if own else 1, size) for name, value in state.items()},
        gradients=[theta.new_zeros(1, 1).expand(1, size) if g is None else g.reshape(1, size) for g in gradients],
        reached=[g is not None for g in gradients],
        touched=touched,
    )


def _count(step: Tensor, own: OwnState | None, counts: HostCounts) -> float | tuple[float, ...]:
    """Return the number of the step under way from the state's count."""
    numbers = counts.read([step])[0] if step.device.type != "cpu" else step.flatten().tolist()
    if own is not None:
        numbers = [numbers[task] for task in own.tasks]
    return numbers[0] + 1 if len(set(numbers)) == 1 else tuple(number + 1 for number in numbers)


def touched_rows(p: Tensor, gradients: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    """Return the rows of ``p`` that any gradient touches, and the gradients of these rows."""
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
