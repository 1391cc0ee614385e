"""Gradients between ``backward`` and ``step``: their tasks, their sums, and a check that nobody changed them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Mark", "Pending", "marks_of", "same_marks", "sum_of", "take"]

Mark = tuple[Tensor | None, int]
"""A ``grad`` and its version, which an in-place change raises."""


@dataclass
class Pending:
    """The gradients of the balanced parameters between ``backward`` and ``step``.

    Attributes:
        present: which tasks have had a loss.
        of_task: one gradient per task and parameter; or empty where only their weighted sum is needed, which is then in
            the parameters' ``grad``.
        total: the plain sum of the tasks' gradients where the step needs it beside the weighted one, else empty.
        marks: the parameters' ``grad`` as the last backward left them.
        solution: what PUB has solved before the passes, to be kept when the step is made.
        unscaled: whether the gradients that it was solved from are known to be free of a ``GradScaler``'s factor.
    """

    present: list[bool]
    of_task: list[list[Tensor | None]]
    total: list[Tensor | None] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    solution: dict[str, Any] = field(default_factory=dict)
    unscaled: bool = False

    @property
    def tasks(self) -> list[int]:
        """The tasks that are present."""
        return [task for task, here in enumerate(self.present) if here]


def take(parameters: Iterable[Tensor]) -> list[Tensor | None]:
    """Return the gradients of the parameters, and leave None in their place."""
    found: list[Tensor | None] = []
    for p in parameters:
        found.append(p.grad)
        p.grad = None
    return found


def sum_of(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum, None counting as 0; where there is only one gradient, that tensor itself.

    Dense where any of them is: a table may be read sparsely by one task and densely by another.
    """
    found = [grad for grad in gradients if grad is not None]
    if len(found) < 2:
        return found[0] if found else None
    if found[0].is_sparse:  # sparse + dense is not defined, dense + sparse is
        found.sort(key=lambda grad: grad.is_sparse)
    total = found[0] + found[1]
    for grad in found[2:]:
        total.add_(grad)
    return total


def marks_of(parameters: Iterable[Tensor]) -> list[Mark]:
    """Return marks by which :func:`same_marks` recognises unchanged gradients."""
    return [(p.grad, 0 if p.grad is None else p.grad._version) for p in parameters]


def same_marks(marks: Sequence[Mark], others: Sequence[Mark]) -> bool:
    """Tell whether all gradients are the same tensors, unchanged."""
    return all(one[0] is other[0] and one[1] == other[1] for one, other in zip(marks, others, strict=True))
