"""The base of optimizers that take one loss per task: backward passes, names, state, and checks of their order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.optim.averaging import Averaging, averaging_of, refuse_unaveraged, refuse_unknown_ranks
from equipoise.optim.checks import check_groups, check_not_per_sample, check_shared, distinct, losses_in_order
from equipoise.optim.clippy import Clippy
from equipoise.optim.gradients import Pending, marks_of, same_marks, sum_of, take
from equipoise.optim.host_counts import HostCounts
from equipoise.optim.passes import Passes, other_leaves
from equipoise.optim.rules import rule_of
from equipoise.optim.shared_parameters import find_shared, warn_about_shared
from equipoise.optim.task_names import Losses, check_names, places_by_name
from equipoise.optim.total import total_of
from equipoise.optim.wrapper import Wrapper

__all__ = ["TaskOptimizer"]


class TaskOptimizer(Wrapper):
    """An optimizer with ``backward(losses)``; a subclass defines the step of the shared parameters.

    All other parameters get the ordinary gradient of the sum of the losses and the wrapped optimizer's own step; with
    a single task, so do the shared ones.
    """

    _averaging: Averaging | None
    _step_supports_amp_scaling = True  # GradScaler then hands its factor over instead of dividing every .grad by it

    def __init__(
        self,
        optimizer: Optimizer,
        shared: Iterable[Parameter] | Literal["auto"],
        tasks: Sequence[str] | None,
        data_parallel: Module | dist.ProcessGroup | None,
    ) -> None:
        super().__init__(optimizer)
        self._rule = rule_of(self.torch_optimizer)
        inner = optimizer
        while isinstance(inner, Wrapper) and not isinstance(inner, Clippy):
            inner = inner.optimizer
        self._clippy = inner if isinstance(inner, Clippy) else None
        self._shared_is_known = not isinstance(shared, str)
        self.shared: list[Parameter] = [] if isinstance(shared, str) else distinct(shared)
        if isinstance(shared, str) and shared != "auto":
            raise ValueError(f'shared must be a list of parameters, or "auto"; found {shared!r}.')
        if self._shared_is_known:
            check_shared(self.shared, self.param_groups)
        check_groups(self.param_groups)
        inside = optimizer._averaging if isinstance(optimizer, TaskOptimizer) else None
        self._averaging = inside or averaging_of(data_parallel, self.param_groups, type(self).__name__)
        self.balanced = self.shared
        self.tasks: tuple[str, ...] = ()
        self._pending: Pending | None = None
        self._stepped = False
        self._checked = False  # the graph of the first losses; the check is slow
        self._counts = HostCounts()
        self._remember({"tasks": []})
        if tasks is not None:
            self._begin(check_names(tasks))

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.param_groups[0]["params"][0].device
        return device

    def _begin(self, tasks: tuple[str, ...]) -> None:
        """Set the tasks' names, here and in what is wrapped."""
        self.tasks = tasks
        self._memory["tasks"] = list(tasks)
        if isinstance(self.optimizer, TaskOptimizer) and not self.optimizer.tasks:
            self.optimizer._begin(tasks)

    def backward(self, losses: Losses, /) -> None:
        """Take the place of ``sum(losses).backward()``; several calls before a step add up, as there.

        Afterwards the ``grad`` of shared parameters holds a sum of the tasks' gradients for all to read, but not to
        change: where a step needs the tasks' gradients one by one, it does not start from there. All other leaves
        that the losses reach, such as tables of another optimizer or an input, get what ``sum(losses).backward()``
        gives them, in one pass of their own where several are needed. Hooks on tensors inside the graph see every
        pass.

        Args:
            losses: one scalar per task: a list, always in the same order and number; a dict by the tasks' names; or
                one tensor of shape [M]. A task that is None, missing in a dict, or whose loss does not require grad,
                is absent: it has no part in this step.

        Raises:
            TypeError: ``losses`` has no order, or an entry is neither a tensor nor None.
            ValueError: the number of losses has changed, a name is not known, or a loss is not a scalar.
            RuntimeError: ``zero_grad`` has not been called since the last step, the shared parameters have gradients
                from elsewhere, or lie behind reentrant checkpoints; a process group was created after this optimizer;
                a rank with sharded tables has no loss; or, on several ranks, the losses reach a parameter of another
                optimizer, whose gradient would not be averaged.
        """
        found = self._scalars(losses)
        if not self._checked:
            self._check_first(found)
        pending = self._pending_for(len(found))
        present = {task: loss for task, loss in enumerate(found) if loss is not None}
        self._before_passes(pending, present)
        if self._averaging is None:
            self._passes(present, self._weights(list(present))).run(pending, present)
        else:
            self._backward_averaged(self._averaging, pending, present)
        pending.marks = marks_of(self.balanced)

    def _scalars(self, losses: Losses) -> list[Tensor | None]:
        """Return the losses in the order of the tasks; the first call fixes the tasks' names and number."""
        scalars, names = losses_in_order(losses, self.tasks, type(self).__name__)
        if not self.tasks:
            self._begin(names)
        return scalars

    def _check_first(self, losses: list[Tensor | None]) -> None:
        """Make the slow checks, in the first backward alone."""
        name = type(self).__name__
        check_not_per_sample(self.param_groups, name)
        present = [loss for loss in losses if loss is not None]
        if self._averaging is None:
            refuse_unknown_ranks(name)  # they may have come since this was made
        other_leaves(present, ())  # refuses reentrant checkpoints
        if self._shared_is_known:
            warn_about_shared(losses, self.shared, self.param_groups, self.tasks, name)
        else:
            ranks = None if self._averaging is None else self._averaging.group
            self._settle_shared(find_shared(losses, self.param_groups, name, ranks))
        self._checked = True

    def _settle_shared(self, shared: list[Parameter]) -> None:
        if shared:
            check_shared(shared, self.param_groups)
        self.shared = self.balanced = shared
        self._shared_is_known = True
        if isinstance(self.optimizer, TaskOptimizer):
            self.optimizer._settle_shared(shared)
        self._choose_balanced()

    def _passes(self, losses: dict[int, Tensor], weights: list[Tensor] | None) -> Passes:
        ranks = self._averaging is not None
        fused = self._averaging is not None and self._averaging.fused
        if ranks and not fused:
            own = (p for group in self.param_groups for p in group["params"])
            refuse_unaveraged(other_leaves(losses.values(), own), type(self).__name__)
        return Passes(self.balanced, self._towers(), weights, self._needs_total(), ranks, fused)

    def total(self, losses: Losses, /) -> Tensor:
        """Return a scalar for those who call ``backward()`` themselves, such as Lightning and Accelerate.

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
        return total_of(self._scalars(losses), self.backward)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters by one step, from what :meth:`backward` has found.

        Before the first step, with all learning rates at 0 and without a ``backward``, it creates the optimizer's
        state: so do tools like ``torch.distributed.checkpoint.state_dict`` ask for it.

        Raises:
            RuntimeError: there was no ``backward(losses)`` since the last step; or the ``grad`` of a shared parameter
                was changed in between, for example by ``clip_grad_norm_`` or ``GradScaler.unscale_``.
        """
        result = self._evaluate(closure)
        pending = self._pending
        if pending is None and not self.state and all(group["lr"] == 0 for group in self.param_groups):
            self._create_state()
            return result
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
        """Forget all gradients; those of shared parameters become None in any case."""
        self.optimizer.zero_grad(set_to_none)
        for p in self.balanced:
            p.grad = None
        self._pending, self._stepped = None, False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, none of which is shared, to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)
        check_groups(self.param_groups)
        self._choose_balanced()

    def _take_averaging_over(self) -> None:
        """Switch off the module's averaging; constructors call this last, so that one that fails changes nothing."""
        if self._averaging is not None:
            self._averaging.take_over()

    @abstractmethod
    def _move(self, pending: Pending) -> None:
        """Move all parameters."""

    def _before_passes(self, pending: Pending, losses: dict[int, Tensor]) -> None:
        """Find what the passes of this call need; ``losses`` holds those that are present, by task."""

    @abstractmethod
    def _needs_each(self) -> bool:
        """Return whether the step under way needs the tasks' gradients one by one."""

    def _weights(self, tasks: list[int]) -> list[Tensor] | None:
        """Return the weights of these tasks for a step with the weighted sum of gradients; None if all are 1."""
        return None

    def _needs_total(self) -> bool:
        """Return whether the step needs the plain sum beside the weighted one."""
        return False

    def _spans_towers(self) -> bool:
        """Return whether all parameters of the optimizer are balanced, not the shared ones alone."""
        return False

    def _choose_balanced(self) -> None:
        """Set the parameters for which a step needs each task's gradient."""
        if self._spans_towers():
            self.balanced = distinct(p for group in self.param_groups for p in group["params"])
            check_shared(self.balanced, self.param_groups)

    def _towers(self) -> list[Parameter]:
        balanced = {id(p) for p in self.balanced}
        return [p for group in self.param_groups for p in group["params"] if id(p) not in balanced]

    def _step_towers(self) -> None:
        """Make the wrapped optimizer's own step of all parameters that are not shared."""
        if not self._towers():
            return
        kept = take(self.balanced)
        self.torch_optimizer.step()
        for p, grad in zip(self.balanced, kept, strict=True):
            p.grad = grad

    def _step_torch(self) -> None:
        """Make the wrapped optimizer's own step of the parameters that have a gradient."""
        moving = [p for p in self.balanced if p.grad is not None]
        known = self._counts.known([self.state[p]["step"] for p in moving if "step" in self.state.get(p, {})])
        self.torch_optimizer.step()
        self._counts.counted(known)

    def _step_all(self) -> None:
        """Make the wrapped optimizer's own step; entries of the shared ``grad`` that are not finite become 0."""
        for p in self.balanced:
            if p.grad is not None:
                (p.grad._values() if p.grad.is_sparse else p.grad).nan_to_num_(0.0, 0.0, 0.0)
        self._step_torch()

    def _pending_for(self, count: int) -> Pending:
        clean = all(p.grad is None for p in self.balanced)
        pending = self._pending
        if pending is not None and (not clean or all(grad is None for grad, _ in pending.marks)):
            return pending  # also where the shared parameters are frozen, and nothing has a gradient
        if not clean:
            raise RuntimeError(
                f"{type(self).__name__}.backward found gradients at the shared parameters that "
                + ("have been used in a step already. " if self._stepped else "did not come from it. ")
                + "Call zero_grad() on this optimizer before, and do not call backward() on the losses yourself."
            )
        tasks = range(count) if self._needs_each() else ()
        each: list[list[Tensor | None]] = [[None for _ in self.balanced] for _ in tasks]
        self._pending = Pending([False] * count, each)
        return self._pending

    def _backward_averaged(self, averaging: Averaging, pending: Pending, losses: dict[int, Tensor]) -> None:
        """Make this rank's passes, then add the mean of all ranks' gradients to those of earlier calls."""
        if averaging.fused and not losses:
            raise RuntimeError(
                f"{type(self).__name__}.backward found no loss on rank {dist.get_rank()}, but sharded tables exchange "
                "their gradients between all ranks in every backward pass: give it a loss that is 0, such as "
                "0 * logits.sum()."
            )
        towers = [p for p in self._towers() if p.requires_grad]
        everywhere, size = [*self.balanced, *towers], len(self.balanced)
        before = take(everywhere)
        own = Pending([False for _ in pending.present], [[None] * size for _ in pending.of_task])
        self._passes(losses, self._weights(list(losses))).run(own, losses)
        rows = own.of_task or [[p.grad for p in self.balanced]]
        if self._needs_total() and not own.of_task:
            rows = [*rows, own.total or [None] * size]
        gradients = [*(grad for row in rows for grad in row), *(p.grad for p in towers)]
        found, present = averaging.average([*self.balanced * len(rows), *towers], gradients, own.present)
        rows = [found[place * size : (place + 1) * size] for place in range(len(rows))]
        if own.of_task:
            pending.of_task = [
                [sum_of(pair) for pair in zip(known, row, strict=True)]
                for known, row in zip(pending.of_task, rows, strict=True)
            ]
            joint = [sum_of(of_p) for of_p in zip(*rows, strict=True)]
        else:
            joint = rows[0]
            if len(rows) > 1:
                pending.total = [sum_of(pair) for pair in zip(pending.total or [None] * size, rows[1], strict=True)]
        for p, *both in zip(everywhere, before, [*joint, *found[len(rows) * size :]], strict=True):
            p.grad = sum_of(both)
        pending.present = [known or new for known, new in zip(pending.present, present, strict=True)]

    def _overflown(self, pending: Pending) -> bool:
        """Return whether a ``GradScaler`` found an overflow; if not, divide all gradients by its factor."""
        single = len(self.tasks) == 1
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            if not single and not same_marks(pending.marks, marks_of(self.balanced)):
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

    def _create_state(self) -> None:
        """Create the optimizer's state as it is before the first step."""
        if isinstance(self.optimizer, TaskOptimizer):
            self.optimizer._create_state()
            return
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    self.state[p] = self._rule.initial(p, group)

    def _recall(self, saved: dict[str, Any]) -> None:
        if saved["tasks"] and not self.tasks:
            self._begin(tuple(saved["tasks"]))
        places = places_by_name(saved["tasks"], self.tasks, type(self).__name__) if saved["tasks"] else None
        self._remember(self._memory)
        if places is not None:
            self._take_over(saved, places)

    def _take_over(self, saved: dict[str, Any], places: list[int | None]) -> None:
        """Restore remembered state; ``places`` holds each task's place in it, None for a new task."""
