"""The fork: the one place between a shared representation and the tasks' towers where their gradients meet.

Forward, every task gets an identity copy of the shared tensors. Backward, the tasks' gradients come back one by one;
their Gram matrix decides the weights with which they flow on into the shared layers. The towers see nothing of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce
from torch.utils import _pytree as pytree

from equipoise._gram import FEW, Gathering, gram_matrix, gram_of_rows, weighted_rows, weighted_sum
from equipoise._loss_scale import follow, scaled_backward

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
    in every step.

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

    Attributes:
        tasks: the tasks' names.
        last_gram: Gram matrix of the last step in unscaled units, float32, shape [M, M]; 0 for tasks not present.
        last_weights: the weights of the last step, float32, shape [M].
        last_present: which tasks were present, bool, shape [M].
        loss_scale: the factor of the ``GradScaler`` whose backward is under way, else 1; float32, no shape.

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

    def __init__(self, tasks: int | Sequence[str], *, process_group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.tasks = _task_names(tasks)
        self.process_group = process_group
        count = len(self.tasks)
        self.register_buffer("last_gram", torch.zeros(count, count), persistent=False)
        self.register_buffer("last_weights", torch.ones(count), persistent=False)
        self.register_buffer("last_present", torch.zeros(count, dtype=torch.bool), persistent=False)
        self.register_buffer("loss_scale", torch.ones(()), persistent=False)
        self._spare: list[Tensor] = []  # memory in which the last backward's gradients were gathered
        follow(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_spare": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and unpickled forks do not pass through __init__.
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        follow(self)

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """The weights of the tasks' gradients; called once per backward under ``no_grad``, with no host sync allowed.

        Args:
            gram: inner products of the tasks' gradients over the whole (global) batch, float32, shape [M, M]; rows
                and columns of tasks that are not present are 0.
            present: which tasks have a finite gradient other than 0, bool, shape [M].

        Returns:
            Weights, float32, shape [M]; the values of tasks that are not present do not matter.
        """
        del present
        return torch.ones_like(gram[0])

    def monitored(self) -> dict[str, Tensor]:
        """Further quantities per task for the monitor: name -> copy on the device, shape [M]."""
        return {}

    def forward(self, shared: Structure, /) -> tuple[Structure, ...]:
        """One copy of ``shared`` (a tensor, or a tuple, list or dict of tensors) per task, in the order of ``tasks``.

        Raises:
            TypeError: ``shared`` holds something else than tensors, or no tensor at all.
        """
        if isinstance(shared, Tensor):  # the common case needs no look at a structure
            wanted = shared.requires_grad and self.training and torch.is_grad_enabled()
            return tuple(self._copies([shared])) if wanted else (shared,) * len(self.tasks)  # type: ignore[arg-type]
        leaves, form = pytree.tree_flatten(shared)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            found = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
            raise TypeError(f"A fork takes a tensor, or a tuple, list or dict of tensors; found {found}.")
        places = [place for place, leaf in enumerate(leaves) if leaf.requires_grad]
        if not self.training or not torch.is_grad_enabled() or not places:
            return (shared,) * len(self.tasks)
        copies = self._copies([leaves[place] for place in places])
        branches = []
        for task in range(len(self.tasks)):
            branch = list(leaves)
            for offset, place in enumerate(places):
                branch[place] = copies[task * len(places) + offset]
            branches.append(pytree.tree_unflatten(branch, form))
        return tuple(branches)

    def _copies(self, shared: Sequence[Tensor]) -> Sequence[Tensor]:
        """Task by task one identity copy of each tensor, all of which meet again in backward."""
        if len(self.tasks) <= FEW or torch.compiler.is_compiling():
            meeting: tuple[Tensor, ...] = _Meeting.apply(self, None, *shared)  # type: ignore[no-untyped-call]
            return meeting
        gathering = Gathering(len(self.tasks), shared, self._spare)
        # A second forward before the first one's backward gathers in memory of its own.
        self._spare = []
        met: tuple[Tensor, ...] = _Meeting.apply(self, gathering, *shared)  # type: ignore[no-untyped-call]
        copies: list[Tensor] = []
        for task in range(len(self.tasks)):
            own = met[task * len(shared) : (task + 1) * len(shared)]
            copies += _Arrival.apply(gathering, task, *own)  # type: ignore[no-untyped-call]
        return copies

    def _weigh_step(self, gram: Tensor) -> Tensor:
        """This step's weights, given the Gram matrix of this rank's gradients."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1:
            group = self.process_group or dist.distributed_c10d._get_default_group()
            gram = all_reduce(gram, "sum", group) / dist.get_world_size(group) ** 2
        gram = gram.to(self.last_gram.dtype)
        diagonal = gram.diagonal()
        if gram.is_cpu and not torch.compiler.is_compiling():
            # Python's numbers: a handful of them takes a tensor operation longer to start than to compute.
            flags = [0 < square < math.inf for square in diagonal.tolist()]
            present, all_present = torch.tensor(flags), all(flags)
        else:
            present, all_present = (diagonal > 0) & (diagonal < math.inf), False
        if not all_present:
            gram = torch.where(present & present.unsqueeze(1), gram, 0.0)
        weights = self.weigh(gram, present)
        if not all_present:
            weights = torch.where(present, weights, 1.0)
        self.last_gram.copy_(gram)
        self.last_weights.copy_(weights)
        self.last_present.copy_(present)
        return weights

    def _factor(self) -> Tensor | None:
        """What the losses of the backward under way were multiplied by; None where that is 1 for sure."""
        return self.loss_scale if torch.compiler.is_compiling() or scaled_backward() else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype.itemsize < buffer.dtype.itemsize:
                self._buffers[name] = buffer.to(after.device)
        return self

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return repr(list(self.tasks))


class _Arrival(torch.autograd.Function):
    """Identity forward; backward, one task's gradients are laid beside those of the tasks that came before."""

    @staticmethod
    def forward(ctx: Any, gathering: Gathering, task: int, *copies: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.gathering = gathering
        ctx.task = task
        return tuple(copy.view_as(copy) for copy in copies)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return None, None, *cotangents
        return None, None, *ctx.gathering.take(ctx.task, cotangents)


class _Meeting(torch.autograd.Function):
    """Identity copies forward; the weighted sum of their gradients backward."""

    @staticmethod
    def forward(ctx: Any, fork: Fork, gathering: Gathering | None, *shared: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.fork = fork
        ctx.gathering = gathering
        ctx.pieces = len(shared)
        ctx.weighed = None
        return tuple(tensor.view_as(tensor) for _ in fork.tasks for tensor in shared)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        device = next(cotangent.device.type for cotangent in cotangents if cotangent is not None)
        # A backward inside an autocast region must not multiply norms in half precision.
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            if ctx.gathering is None or torch.is_grad_enabled():
                balanced = _meet(ctx, cotangents)
            else:
                balanced = _meet_in_rows(ctx, cotangents)
        return None, None, *balanced


def _meet(ctx: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The balanced gradient of every piece, from gradients that lie where autograd has put them."""
    fork: Fork = ctx.fork
    by_piece = [cotangents[place :: ctx.pieces] for place in range(ctx.pieces)]

    def gram() -> Tensor:
        with torch.no_grad():
            return _total(gram_matrix(filled, fork._factor()) for piece in by_piece if (filled := _filled(piece)))

    weights = _weights(ctx, cotangents, gram)
    balanced: list[Tensor | None] = []
    for piece in by_piece:
        arrived = [task for task, gradient in enumerate(piece) if gradient is not None]
        gradients = [gradient for gradient in piece if gradient is not None]
        own = weights if len(arrived) == len(piece) else torch.stack([weights[task] for task in arrived or [0]])
        balanced.append(weighted_sum(gradients, own) if gradients else None)
    return balanced


def _meet_in_rows(ctx: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same from gradients that were gathered as they arrived."""
    fork: Fork = ctx.fork
    rows: list[Tensor] = ctx.gathering.rows
    by_piece = [cotangents[place :: ctx.pieces] for place in range(ctx.pieces)]
    for piece, gathered in zip(by_piece, rows, strict=True):
        for task, gradient in enumerate(piece):
            if gradient is None:
                gathered[task].zero_()
    weights = _weights(ctx, cotangents, lambda: _total(gram_of_rows(gathered, fork._factor()) for gathered in rows))
    balanced = [
        weighted_rows(gathered, weights).view(shape) if (shape := _shape(piece)) is not None else None
        for piece, gathered in zip(by_piece, rows, strict=True)
    ]
    if rows[0].is_cpu:  # where fresh memory is dear; an accelerator's allocator keeps it itself
        fork._spare = rows
    ctx.gathering.rows = []
    return balanced


def _weights(ctx: Any, cotangents: Sequence[Tensor | None], gram: Callable[[], Tensor]) -> Tensor:
    """The weights of the graph's first backward; a second one over it is the same linear map."""
    fork: Fork = ctx.fork
    if torch.compiler.is_compiling():
        return fork._weigh_step(gram())
    arrived = {place // ctx.pieces for place, cotangent in enumerate(cotangents) if cotangent is not None}
    if ctx.weighed is None:
        with torch.no_grad():
            ctx.weighed = (arrived, fork._weigh_step(gram()))
    first: set[int] = ctx.weighed[0]
    if not arrived <= first:
        raise RuntimeError(_one_by_one(fork.tasks, sorted(first), sorted(arrived)))
    weights: Tensor = ctx.weighed[1]
    return weights


def _total(matrices: Iterable[Tensor]) -> Tensor:
    first, *others = matrices
    return functools.reduce(torch.add, others, first)


def _shape(piece: Sequence[Tensor | None]) -> torch.Size | None:
    return next((gradient.shape for gradient in piece if gradient is not None), None)


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
