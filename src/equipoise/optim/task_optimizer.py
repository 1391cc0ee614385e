"""What optimizers that take one loss per task have in common: backward passes per task, and a joint step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.optim.averaging import Averaging, averaging_of, refuse_unknown_ranks
from equipoise.optim.checks import check_groups, check_reachable, check_shared, distinct, scalars_of
from equipoise.optim.clippy import Clippy
from equipoise.optim.rules import rule_of
from equipoise.optim.total import total_of
from equipoise.optim.wrapper import Wrapper

__all__ = ["Pending", "TaskOptimizer"]


@dataclass
class Pending:
    """The gradients of the shared parameters between ``backward`` and ``step``.

    Attributes:
        present: which tasks have had a loss.
        of_task: one gradient per task and parameter; or empty where only their weighted sum is needed, which is then in
            the parameters' ``grad``.
        total: the plain sum of the tasks' gradients where the step needs it beside the weighted one, else empty.
        marks: the parameters' ``grad`` and its version, as the last backward left them.
    """

    present: list[bool]
    of_task: list[list[Tensor | None]]
    total: list[Tensor | None] = field(default_factory=list)
    marks: list[tuple[Tensor | None, int]] = field(default_factory=list)

    @property
    def tasks(self) -> list[int]:
        """The tasks that are present."""
        return [task for task, here in enumerate(self.present) if here]


class TaskOptimizer(Wrapper):
    """An optimizer with ``backward(losses)``; a subclass says how the shared parameters move.

    All other parameters get the ordinary gradient of the sum of the losses and the wrapped optimizer's own step. With
    one task everything does.
    """

    _averaging: Averaging | None
    _step_supports_amp_scaling = True  # GradScaler then hands its factor over instead of dividing every .grad by it

    def __init__(
        self,
        optimizer: Optimizer,
        shared: Iterable[Parameter],
        data_parallel: Module | dist.ProcessGroup | None,
    ) -> None:
        super().__init__(optimizer)
        self._rule = rule_of(self.torch_optimizer)
        inner = optimizer
        while isinstance(inner, Wrapper) and not isinstance(inner, Clippy):
            inner = inner.optimizer
        self._clippy = inner if isinstance(inner, Clippy) else None
        self.shared = distinct(shared)
        check_shared(self.shared, self.param_groups)
        check_groups(self.param_groups)
        inside = optimizer._averaging if isinstance(optimizer, TaskOptimizer) else None
        self._averaging = inside or averaging_of(data_parallel, self.param_groups, type(self).__name__)
        self.balanced = self.shared
        self._count: int | None = None
        self._pending: Pending | None = None
        self._stepped = False
        self._checked = False  # the first losses' graph, which takes a moment

    def backward(self, losses: Sequence[Tensor | None] | Tensor, /) -> None:
        """Takes the place of ``sum(losses).backward()``; several calls before a step add up, as there.

        Afterwards the ``grad`` of shared parameters holds a sum of the tasks' gradients for all to read, but not to
        change: where a step needs the tasks' gradients one by one, it does not start from there.

        Args:
            losses: one scalar per task, always in the same order and number, or one tensor of shape [M]. A task that is
                None, or whose loss does not require grad, is absent: it has no part in this step.

        Raises:
            TypeError: an entry is neither a tensor nor None.
            ValueError: the number of losses has changed, or one is not a scalar.
            RuntimeError: ``zero_grad`` has not been called since the last step, the shared parameters have gradients
                from elsewhere, or lie behind reentrant checkpoints; a process group has come since this was made; or
                there is no loss at all on a rank with sharded tables.
        """
        found = scalars_of(losses)
        if not self._checked:
            if self._averaging is None:
                refuse_unknown_ranks(type(self).__name__)  # they may have come since this was made
            check_reachable(loss for loss in found if loss is not None)
            self._checked = True
        pending = self._pending_for(len(found))
        present = {task: loss for task, loss in enumerate(found) if loss is not None}
        heads = [p for p in self._heads() if p.requires_grad]
        if self._averaging is None:
            self._backward_here(pending, present, heads)
        else:
            self._backward_averaged(self._averaging, pending, present, heads)
        pending.marks = _marks(self.balanced)

    def total(self, losses: Sequence[Tensor | None] | Tensor, /) -> Tensor:
        """A scalar for those who call ``backward()`` themselves, such as Lightning and Accelerate.

        Its value is the sum of the losses, and its ``backward()`` is :meth:`backward` with each loss times the factor
        that arrives there (that of a ``GradScaler``, or 1 over the number of accumulated micro-batches).

        Args:
            losses: as for :meth:`backward`.

        Returns:
            A scalar that requires grad; ``backward()`` on it works once.

        Raises:
            TypeError, ValueError: as :meth:`backward` does.

        Example:
            >>> from equipoise import AdaTask
            >>> shared, head = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
            >>> optimizer = AdaTask(torch.optim.SGD([shared, head], lr=0.5), shared=[shared])
            >>> loss = optimizer.total([shared.sum(), (shared * head).sum()])
            >>> loss.item()
            4.0
            >>> loss.backward()
            >>> optimizer.step()
            >>> shared.data
            tensor([0., 0.])
        """
        return total_of(scalars_of(losses), self.backward)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters, from what :meth:`backward` has found.

        Raises:
            RuntimeError: there was no ``backward(losses)`` since the last step; or the ``grad`` of a shared parameter
                has been changed meanwhile, be it by ``clip_grad_norm_`` or by ``GradScaler.unscale_``.
        """
        result = self._evaluate(closure)
        pending = self._pending
        if pending is None:
            raise RuntimeError(
                f"{type(self).__name__}.step() needs the gradient of every task: expected a call of backward(losses) "
                "on this optimizer since its last step, found none. Let it take the place of sum(losses).backward()."
            )
        if not self._overflown(pending):
            before = self._clippy.remember() if self._clippy else []
            self._move(pending)
            if self._clippy:
                self._clippy.shrink(before)
        self._pending, self._stepped = None, True
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients; those of shared parameters become None in any case."""
        self.optimizer.zero_grad(set_to_none)
        for p in self.balanced:
            p.grad = None
        self._pending, self._stepped = None, False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, none of which is shared, to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)
        check_groups(self.param_groups)
        self._choose_balanced()

    def _take_averaging_over(self) -> None:
        """The last thing that a constructor does: one that fails leaves the module as it was."""
        if self._averaging is not None:
            self._averaging.take_over()

    @abstractmethod
    def _move(self, pending: Pending) -> None:
        """Moves all parameters."""

    @abstractmethod
    def _needs_each(self) -> bool:
        """Whether the step under way needs the tasks' gradients one by one."""

    def _weights(self, tasks: list[int]) -> list[Tensor] | None:
        """The weights of these tasks where only the weighted sum of gradients is needed; None if all are 1."""
        return None

    def _needs_total(self) -> bool:
        """Whether the plain sum is needed beside the weighted one."""
        return False

    def _spans_towers(self) -> bool:
        """Whether all parameters of the optimizer are balanced, and not the shared ones alone."""
        return False

    def _choose_balanced(self) -> None:
        """The parameters of which a step needs every task's gradient."""
        if self._spans_towers():
            self.balanced = distinct(p for group in self.param_groups for p in group["params"])
            check_shared(self.balanced, self.param_groups)

    def _heads(self) -> list[Parameter]:
        balanced = {id(p) for p in self.balanced}
        return [p for group in self.param_groups for p in group["params"] if id(p) not in balanced]

    def _step_heads(self) -> None:
        """The wrapped optimizer's own step of all parameters that are not shared."""
        if not self._heads():
            return
        kept = _take(self.balanced)
        self.torch_optimizer.step()
        for p, grad in zip(self.balanced, kept, strict=True):
            p.grad = grad

    def _step_all(self) -> None:
        """The wrapped optimizer's own step with the ``grad`` of the shared parameters as it is, made finite."""
        for p in self.balanced:
            if p.grad is not None:
                (p.grad._values() if p.grad.is_sparse else p.grad).nan_to_num_(0.0, 0.0, 0.0)
        self.torch_optimizer.step()

    def _pending_for(self, count: int) -> Pending:
        name = type(self).__name__
        if self._count is None:
            self._count = count
        elif count != self._count:
            raise ValueError(
                f"{name}.backward expected {self._count} losses, as from the start, found {count}. Pass None for a "
                "task that is absent in this step."
            )
        clean = all(p.grad is None for p in self.balanced)
        if self._pending is not None and not clean:
            return self._pending
        if not clean:
            raise RuntimeError(
                f"{name}.backward found gradients at the shared parameters that "
                + ("have been used in a step already. " if self._stepped else "did not come from it. ")
                + "Call zero_grad() on this optimizer before, and do not call backward() on the losses yourself."
            )
        tasks = range(count) if self._needs_each() else ()
        each: list[list[Tensor | None]] = [[None for _ in self.balanced] for _ in tasks]
        self._pending = Pending([False] * count, each)
        return self._pending

    def _backward_averaged(
        self, averaging: Averaging, pending: Pending, losses: dict[int, Tensor], heads: list[Parameter]
    ) -> None:
        """The passes of this rank, then the mean of all ranks' on top of what earlier calls have left."""
        if averaging.fused and not losses:
            raise RuntimeError(
                f"{type(self).__name__}.backward found no loss on rank {dist.get_rank()}, but sharded tables exchange "
                "their gradients between all ranks in every backward pass: give it a loss that is 0, such as "
                "0 * logits.sum()."
            )
        everywhere, size = [*self.balanced, *heads], len(self.balanced)
        before = _take(everywhere)
        own = Pending([False for _ in pending.present], [[None] * size for _ in pending.of_task])
        self._backward_here(own, losses, heads)
        rows = own.of_task or [[p.grad for p in self.balanced]]
        if self._needs_total() and not own.of_task:
            rows = [*rows, own.total or [None] * size]
        gradients = [*(grad for row in rows for grad in row), *(p.grad for p in heads)]
        found, present = averaging.average([*self.balanced * len(rows), *heads], gradients, own.present)
        rows = [found[place * size : (place + 1) * size] for place in range(len(rows))]
        if own.of_task:
            pending.of_task = [
                [_sum(pair) for pair in zip(known, row, strict=True)]
                for known, row in zip(pending.of_task, rows, strict=True)
            ]
            joint = [_sum(of_p) for of_p in zip(*rows, strict=True)]
        else:
            joint = rows[0]
            if len(rows) > 1:
                pending.total = [_sum(pair) for pair in zip(pending.total or [None] * size, rows[1], strict=True)]
        for p, *both in zip(everywhere, before, [*joint, *found[len(rows) * size :]], strict=True):
            p.grad = _sum(both)
        pending.present = [known or new for known, new in zip(pending.present, present, strict=True)]

    def _backward_here(self, pending: Pending, losses: dict[int, Tensor], heads: list[Parameter]) -> None:
        for task in losses:
            pending.present[task] = True
        if losses and pending.of_task:
            self._backward_each(pending, losses, heads)
        elif losses:
            self._backward_joint(pending, losses, heads)

    def _backward_each(self, pending: Pending, losses: dict[int, Tensor], heads: list[Parameter]) -> None:
        inputs = [*(p for p in self.balanced if p.requires_grad), *heads]
        _take(self.balanced)
        last = max(losses)
        for task, loss in losses.items():
            torch.autograd.backward(loss, retain_graph=task != last or self._fused(), inputs=inputs)
            pending.of_task[task] = [
                _sum(pair) for pair in zip(pending.of_task[task], _take(self.balanced), strict=True)
            ]
        if self._fused():
            self._backward_upstream(losses, heads)
            _take(self.balanced)
        for p, *of_p in zip(self.balanced, *pending.of_task, strict=True):
            p.grad = _sum(of_p)

    def _backward_joint(self, pending: Pending, losses: dict[int, Tensor], heads: list[Parameter]) -> None:
        shared = [p for p in self.balanced if p.requires_grad]
        scalars = list(losses.values())
        weights = self._weights(list(losses))
        if weights is None:
            torch.autograd.backward(scalars, inputs=None if self._fused() else [*shared, *heads])
            return
        needed = [*heads, *(shared if self._needs_total() else [])]
        if needed:
            kept = _take(self.balanced)
            torch.autograd.backward(scalars, retain_graph=True, inputs=needed)
            if self._needs_total():
                found = _take(self.balanced)
                known = pending.total or [None] * len(found)
                pending.total = [_sum(pair) for pair in zip(known, found, strict=True)]
            for p, grad in zip(self.balanced, kept, strict=True):
                p.grad = grad
        if self._fused():
            self._backward_upstream(losses, heads)
        else:
            torch.autograd.backward(scalars, grad_tensors=_scaled(scalars, weights), inputs=shared)

    def _backward_upstream(self, losses: dict[int, Tensor], heads: list[Parameter]) -> None:
        """One pass of the weighted losses through everything, in which what is fused steps; heads are spared."""
        kept = _take(heads)
        scalars, weights = list(losses.values()), self._weights(list(losses))
        torch.autograd.backward(scalars, grad_tensors=None if weights is None else _scaled(scalars, weights))
        for p, grad in zip(heads, kept, strict=True):
            p.grad = grad

    def _fused(self) -> bool:
        return self._averaging is not None and self._averaging.fused

    def _overflown(self, pending: Pending) -> bool:
        """Whether a ``GradScaler`` has found an overflow; if it has not, its factor is taken out of all gradients."""
        single = self._count == 1
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            if not single and not _alike(pending.marks, _marks(self.balanced)):
                which = "parameters" if self._spans_towers() else "shared parameters"
                raise RuntimeError(
                    f"The gradients of {which} were changed between {type(self).__name__}.backward and step, "
                    "but the step starts from those of the single tasks. Limit the step with Clippy instead of "
                    "clipping gradients; with a GradScaler call scaler.step(optimizer) without "
                    "scaler.unscale_(optimizer)."
                )
            return False
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is None and not single:
            raise RuntimeError(
                f"{type(self).__name__} takes the scale out of its tasks' gradients itself: call "
                "scaler.step(optimizer) without calling scaler.unscale_(optimizer) before."
            )
        if found_inf.item():  # the sync that GradScaler makes for every optimizer
            return True
        if scale is not None:
            everywhere = [p.grad for group in self.param_groups for p in group["params"]]
            found = [
                grad for part in (everywhere, pending.total, *pending.of_task) for grad in part if grad is not None
            ]
            for grad in {id(grad): grad for grad in found}.values():  # where one task alone has one it is the sum, too
                grad.div_(scale.to(grad.device))
        return False

    def _own_state(self) -> dict[str, Any]:
        return {"tasks": self._count}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._count = state["tasks"]


def _take(parameters: Iterable[Parameter]) -> list[Tensor | None]:
    """The parameters' gradients, which they lose."""
    found: list[Tensor | None] = []
    for p in parameters:
        found.append(p.grad)
        p.grad = None
    return found


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Their sum, None counting as 0; the very gradient where there is only one."""
    found = [grad for grad in gradients if grad is not None]
    if len(found) < 2:
        return found[0] if found else None
    total = found[0] + found[1]
    for grad in found[2:]:
        total.add_(grad)
    return total


def _scaled(losses: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.to(loss.dtype).expand_as(loss) for weight, loss in zip(weights, losses, strict=True)]


def _marks(parameters: Iterable[Parameter]) -> list[tuple[Tensor | None, int]]:
    """What tells a changed gradient from an unchanged one."""
    return [(p.grad, 0 if p.grad is None else p.grad._version) for p in parameters]


def _alike(marks: list[tuple[Tensor | None, int]], others: list[tuple[Tensor | None, int]]) -> bool:
    return all(one[0] is other[0] and one[1] == other[1] for one, other in zip(marks, others, strict=True))
