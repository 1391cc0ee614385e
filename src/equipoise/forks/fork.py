"""The fork: the one place between a shared representation and the tasks' towers where their gradients meet.

Forward, every task gets an identity copy of the shared tensors. Backward, the tasks' gradients come back one by one;
their Gram matrix decides the weights with which they flow on into the shared layers. The towers see nothing of it.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from equipoise.forks.grad_scaler import follow, scaled_backward
from equipoise.forks.gram import gram_matrix, weighted_sum

if dist.is_available():
    from torch.distributed._functional_collectives import all_reduce

__all__ = ["Fork"]

Structure = TypeVar("Structure")


class Fork(nn.Module):
    r"""Hands every task an identity copy of a shared representation and weighs the tasks' gradients on the way back.

    With ``g_m`` the gradient of the losses with respect to task m's copy, what flows on upstream is ``Σ_m w_m g_m``,
    ``w = self.weigh(gram, present)``. Each tower keeps the unweighted gradient of its own loss. The loop stays
    ``sum(losses).backward()``: once per forward, all losses together. ``Fork`` itself gives every task the weight 1,
    which is ordinary training with its gradients on view; a subclass overrides :meth:`weigh` and nothing else.

    In eval mode, under ``torch.no_grad`` and where no gradient is needed the shared tensors are handed on as they are.

    Data parallel training: once ``torch.distributed`` is initialised, the Gram matrix is summed over the ranks of
    ``process_group`` (one all-reduce of M² numbers) and divided by their number squared, so that W ranks with batches
    of B/W and mean losses weigh as one rank with a batch of B does. So every rank must go through the fork's backward
    in every step. A ``DistributedDataParallel`` also broadcasts all buffers before each forward pass, which the fork's
    do not need: ``forward_sync_buffers=False`` (before torch 2.13 ``broadcast_buffers=False``) saves it, where no
    other module's buffers need it. With ``overlap`` nobody waits for the all-reduce: a step weighs by the matrix of the
    step before, which has had a whole step to arrive, and the first step by weights of 1; a task that the step before
    lacked has the weight it last had.

    Under a ``torch.amp.GradScaler`` the Gram matrix is brought back to the units of the unscaled losses.

    A task whose gradient is missing, all zeros or not finite in a step is not *present*: ``weigh`` must not let it
    count, and its gradient is passed on with the weight 1, so that a ``GradScaler`` still sees an overflow.

    A second backward over the same graph (``retain_graph=True``) reuses the first one's weights and moves no state.
    Under ``create_graph=True`` the weights are constants of the graph, and what a penalty on the balanced gradient
    sends back crosses the fork as every gradient does. A compiled model keeps no record of its backwards: there a
    second one counts as a new step, and losses that come one by one are not noticed.

    The fork's state stays in float32 (or wider), also in a model that is brought to half precision.

    Args:
        tasks: the tasks' names, or how many there are (their names are then "0", "1", …).
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix and presence, whatever the number of ranks; under
            ``torch.compile`` the result is the same, but the all-reduce is waited for.

    Attributes:
        tasks: the tasks' names.
        last_gram: Gram matrix of the last step in unscaled units, shape [M, M]; 0 for tasks not present.
        last_weights: the weights of the last step, shape [M].
        last_present: which tasks were present, bool, shape [M].
        loss_scale: the factor of the ``GradScaler`` whose backward is under way, else 1; no shape.

    Raises:
        ValueError: there is no task, or a name is empty or occurs twice.

    Example:
        >>> fork = Fork(["click", "like"])
        >>> shared = torch.ones(4, 3, requires_grad=True)
        >>> for_click, for_like = fork(shared)
        >>> (for_click.mean() + for_like.mean()).backward()
        >>> fork.last_weights
        tensor([1., 1.])
    """

    last_gram: Tensor
    last_weights: Tensor
    last_present: Tensor
    loss_scale: Tensor
    arriving: Tensor | None

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
    ) -> None:
        super().__init__()
        self.tasks = _task_names(tasks)
        self.process_group = process_group
        self.overlap = overlap
        self._under_way: tuple[dist.Work, Tensor] | None = None
        count = len(self.tasks)
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("last_gram", torch.empty(count, count, dtype=wide), persistent=False)
        self.register_buffer("last_weights", torch.empty(count, dtype=wide), persistent=overlap)
        self.register_buffer("last_present", torch.empty(count, dtype=torch.bool), persistent=False)
        self.register_buffer("loss_scale", torch.empty((), dtype=wide), persistent=False)
        self.register_buffer("arriving", torch.empty(count, count, dtype=wide) if overlap else None)
        Fork.reset_parameters(self)
        follow(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self.process_group)] = self.process_group  # ranks are not copied
        other: Self = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        self._wait()
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._wait()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._wait()
        super()._load_from_state_dict(*args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and unpickled forks do not pass through __init__.
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        follow(self)

    def reset_parameters(self) -> None:
        """Back to the state before the first step, as a module made on the meta device needs it after ``to_empty``."""
        self.last_gram.zero_()
        self.last_weights.fill_(1.0)
        self.last_present.zero_()
        self.loss_scale.fill_(1.0)
        if self.arriving is not None:
            self._wait()
            self.arriving.zero_()

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """The weights of the tasks' gradients; called once per backward under ``no_grad``, with no host sync allowed.

        Args:
            gram: inner products of the tasks' gradients over the whole (global) batch, float32 or wider, shape
                [M, M]; rows and columns of tasks that are not present are 0.
            present: which tasks have a finite gradient other than 0, bool, shape [M].

        Returns:
            Weights in the dtype of ``gram``, shape [M]; the values of tasks that are not present do not matter.
        """
        return torch.ones_like(gram[0])

    def monitored(self) -> dict[str, Tensor]:
        """Further quantities per task for the monitor: name -> copy on the device, shape [M]."""
        return {}

    def forward(self, shared: Structure, /) -> tuple[Structure, ...]:
        """One copy of ``shared`` (a tensor, or a tuple, list or dict of tensors) per task, in the order of ``tasks``.

        Raises:
            TypeError: ``shared`` holds something else than real tensors, or no tensor at all.
        """
        # A lone tensor is the common case, and needs no look at a structure.
        leaves, form = ([shared], None) if isinstance(shared, Tensor) else pytree.tree_flatten(shared)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            found = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
            raise TypeError(f"A fork takes a tensor, or a tuple, list or dict of tensors; found {found}.")
        if any(leaf.is_complex() for leaf in leaves):
            raise TypeError("A fork takes real tensors, found a complex one; fork torch.view_as_real of it.")
        places = [place for place, leaf in enumerate(leaves) if leaf.requires_grad]
        if not self.training or not torch.is_grad_enabled() or not places:
            return (shared,) * len(self.tasks)
        copies: Any = _Meeting.apply(self, *(leaves[place] for place in places))  # type: ignore[no-untyped-call]
        if form is None:
            return tuple(copies)
        branches = []
        for task in range(len(self.tasks)):
            branch = list(leaves)
            for offset, place in enumerate(places):
                branch[place] = copies[task * len(places) + offset]
            branches.append(pytree.tree_unflatten(branch, form))
        return tuple(branches)

    @torch.no_grad()
    def _weigh_step(self, by_piece: Sequence[Sequence[Tensor | None]]) -> tuple[Tensor, Tensor]:
        """The step's weights and the tasks present; ``by_piece[p][m]`` is task m's gradient of piece p, None for 0."""
        factor = self._factor()
        grams = [gram_matrix(gradients, factor) for piece in by_piece if (gradients := _filled(piece))]
        # Without any gradient here other ranks may have some, and wait for this one's.
        gram = functools.reduce(torch.add, grams) if grams else torch.zeros_like(self.last_gram)
        gram = self._over_ranks(gram.to(self.last_gram.dtype))
        diagonal = gram.diagonal()
        if gram.is_cpu and not torch.compiler.is_compiling():
            # Python's numbers: a handful of them takes a tensor operation longer to start than to compute.
            flags = [0 < square < math.inf for square in diagonal.tolist()]
            present, all_present = torch.tensor(flags, device=gram.device), all(flags)
        else:
            present, all_present = (diagonal > 0) & (diagonal < math.inf), False
        if not all_present:
            gram = torch.where(present & present.unsqueeze(1), gram, 0.0)
        weights = self.weigh(gram, present)
        # A copy in either case: what a subclass returns may be its own state, which moves on.
        if all_present:
            weights = weights.clone()
        else:
            # A task that the step before lacked may be here in this one: its last weight is the best there is.
            weights = torch.where(present, weights, self.last_weights if self.overlap else 1.0)
        self.last_gram.copy_(gram)
        self.last_weights.copy_(weights)
        self.last_present.copy_(present)
        return weights, present

    def _merge(
        self, by_piece: Sequence[Sequence[Tensor | None]], weights: Tensor, present: Tensor
    ) -> list[Tensor | None]:
        """The gradient that flows on for each piece; None where none arrived."""
        return [_balanced(piece, weights) for piece in by_piece]

    def _over_ranks(self, gram: Tensor) -> Tensor:
        """The Gram matrix of the global batch; with ``overlap`` that of the step before."""
        group = _group(self.process_group)
        if group is not None:
            gram = gram / dist.get_world_size(group) ** 2
        if self.arriving is None:
            return gram if group is None else all_reduce(gram, "sum", group)
        compiled = torch.compiler.is_compiling()
        if not compiled:
            self._wait()
        before = self.arriving.clone()
        if group is None or compiled:
            self.arriving.copy_(gram if group is None else all_reduce(gram, "sum", group))
        else:
            # Not into the buffer itself, which a DistributedDataParallel broadcasts before the next forward pass.
            work = dist.all_reduce(gram, group=group, async_op=True)
            assert work is not None
            self._under_way = work, gram
        return before

    def _wait(self) -> None:
        """Until the matrix under way has arrived: nobody may read, replace or save it before."""
        if self._under_way is not None and self.arriving is not None:
            work, gram = self._under_way
            work.wait()
            self.arriving.copy_(gram)
            self._under_way = None

    def _factor(self) -> Tensor | None:
        """What the losses of the backward under way were multiplied by; None where that is 1 for sure."""
        return self.loss_scale if torch.compiler.is_compiling() or scaled_backward() else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._wait()
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype.itemsize < buffer.dtype.itemsize:
                self._buffers[name] = buffer.to(after.device)
        return self

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{list(self.tasks)!r}{', overlap=True' if self.overlap else ''}"


class _Meeting(torch.autograd.Function):
    """Identity copies forward; the weighted sum of their gradients backward."""

    @staticmethod
    def forward(ctx: Any, fork: Fork, *shared: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.fork = fork
        ctx.device = shared[0].device.type
        ctx.pieces = len(shared)
        ctx.weighed = None
        return tuple(tensor.view_as(tensor) for _ in fork.tasks for tensor in shared)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        mixed = torch.amp.is_autocast_available(ctx.device) and torch.is_autocast_enabled(ctx.device)
        # A backward inside an autocast region must not multiply norms in half precision.
        with torch.autocast(ctx.device, enabled=False) if mixed else nullcontext():
            by_piece = [cotangents[place :: ctx.pieces] for place in range(ctx.pieces)]
            return None, *ctx.fork._merge(by_piece, *_weights(ctx, by_piece))


def _weights(ctx: Any, by_piece: Sequence[Sequence[Tensor | None]]) -> tuple[Tensor, Tensor]:
    """The weights of the graph's first backward and the tasks present in it; a second one over it reuses them."""
    fork: Fork = ctx.fork
    if torch.compiler.is_compiling():
        return fork._weigh_step(by_piece)
    arrived = {task for piece in by_piece for task, gradient in enumerate(piece) if gradient is not None}
    if ctx.weighed is None:
        ctx.weighed = (arrived, fork._weigh_step(by_piece))
    first: set[int] = ctx.weighed[0]
    if not arrived <= first:
        raise RuntimeError(_one_by_one(fork.tasks, sorted(first), sorted(arrived)))
    weighed: tuple[Tensor, Tensor] = ctx.weighed[1]
    return weighed


def _balanced(piece: Sequence[Tensor | None], weights: Tensor) -> Tensor | None:
    gradients = [gradient for gradient in piece if gradient is not None]
    if not gradients:
        return None
    if len(gradients) < len(piece):
        weights = torch.stack([weights[task] for task, gradient in enumerate(piece) if gradient is not None])
    return weighted_sum(gradients, weights)


def _group(process_group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group if it has several ranks."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(process_group) == 1:
        return None
    return process_group or dist.distributed_c10d._get_default_group()


def _filled(piece: Sequence[Tensor | None]) -> list[Tensor]:
    """One task's gradient of a piece after the other, zeros for those that did not arrive; nothing if none did."""
    like = next((gradient for gradient in piece if gradient is not None), None)
    if like is None:
        return []
    return [torch.zeros_like(like) if gradient is None else gradient for gradient in piece]


def _one_by_one(tasks: Sequence[str], first: Sequence[int], now: Sequence[int]) -> str:
    def names(places: Sequence[int]) -> str:
        return ", ".join(tasks[place] for place in places)

    return (
        "A fork weighs all tasks' gradients against each other, so it must see them in one backward. It has seen "
        f"{names(first)} in a first backward over this graph, and now {names(now)}. Sum the losses and call backward "
        "once: sum(losses).backward()."
    )


def _task_names(tasks: int | Sequence[str]) -> tuple[str, ...]:
    """Names of tasks from their number or from themselves."""
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
