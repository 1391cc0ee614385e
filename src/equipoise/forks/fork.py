"""The fork: the one place between a shared representation and the tasks' towers where their gradients meet.

Forward, every task gets an identity copy of the shared tensors. Backward, the tasks' gradients come back; their Gram
matrix decides the weights with which they flow on into the shared layers. The towers are not affected.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equipoise.forks.gram import gram_matrix
from equipoise.forks.meeting import Meeting, Passage, in_captured_graph
from equipoise.forks.pieces import Piece, balanced, filled
from equipoise.forks.ranks import group_of_several
from equipoise.forks.recorded_step import step_of
from equipoise.forks.stand_in import Copies
from equipoise.forks.state import TaskState
from equipoise.forks.structure import differentiable_parts, tasks_first
from equipoise.grad_scaler import enclosing_backward, note_grad_scalers
from equipoise.per_sample import computed_per_sample, per_sample_gradients_possible

if dist.is_available():
    from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce

__all__ = ["Fork"]

Structure = TypeVar("Structure")

_GOLDEN = (math.sqrt(5) - 1) / 2


class Fork(TaskState):
    r"""Hands every task an identity copy of a shared representation and weighs the tasks' gradients on the way back.

    With ``g_m`` the gradient of the losses with respect to task m's copy, what flows on upstream is ``Σ_m w_m g_m``,
    ``w = self.weigh(gram, present)``. Each tower keeps the unweighted gradient of its own loss. The loop stays
    ``sum(losses).backward()``: once per forward, all losses together. ``Fork`` itself gives every task the weight 1,
    which is ordinary training whose gradients a monitor can read; a subclass overrides :meth:`weigh` alone.

    In eval mode, under ``torch.no_grad`` and where no gradient is needed the shared tensors are handed on as they are.
    So a model in eval mode can be traced by ``torch.fx``, exported by ``torch.export`` and traced or scripted by
    ``torch.jit``. :func:`equipoise.paused` does the same for a while, for diagnostics that look at gradients.

    Data parallel training: once ``torch.distributed`` is initialised, the Gram matrix is summed over the ranks of
    ``process_group`` (one all-reduce of M² numbers) and divided by their number squared, so that W ranks with batches
    of B/W and mean losses weigh as one rank with a batch of B does. So every rank must go through the fork's backward
    in every step. A ``DistributedDataParallel`` also broadcasts all buffers before each forward pass, which the fork's
    do not need: ``forward_sync_buffers=False`` (before torch 2.13 ``broadcast_buffers=False``) saves it, where no
    other module's buffers need it. With ``overlap`` no rank waits for the all-reduce: a step uses the previous
    step's matrix, which has had a whole step to arrive, and the first step weights of 1. A task that was absent in the
    previous step keeps its last weight.

    With ``gram_every=k`` one step in k, each k steps another one of them, measures the Gram matrix and finds the
    weights; the steps between reuse them, cost a weighted sum alone, and make no all-reduce. A task keeps the weight 1
    until a step that measures has seen it. All ranks measure in the same steps. A compiled fork measures in every step,
    and so does one that is captured in a CUDA graph. The first step after a start or a load reads the number of the
    step from the device.

    Under a ``torch.amp.GradScaler`` the Gram matrix is brought back to the units of the unscaled losses. For that the
    first fork wraps ``GradScaler.scale`` for the whole process: the returned loss gets a hook, which notes the factor
    for the backward that starts from this loss. Other backwards, in other threads or nested, do not see it; only a
    forward pass within that backward, such as a reentrant checkpoint's, counts as a part of it.

    A task whose gradient is missing, all zeros or not finite in a step is not *present*: ``weigh`` must ignore
    it, and its gradient is passed on with the weight 1, so that a ``GradScaler`` still sees an overflow.

    A second backward over the same graph (``retain_graph=True``) reuses the first one's weights and changes no
    state. Under ``create_graph=True``, ``torch.func.grad`` and ``vjp`` the weights are constants of the graph, and the
    gradient of a penalty on the balanced gradient crosses the fork like any other. A compiled model keeps no record of
    its backwards: a second one counts as a new step, and losses that go backward one by one are not detected.

    Differentially private training clips the gradient of each example, which must not depend on the others. A fork
    whose weights do (:attr:`mixes_examples`) refuses a model that Opacus has wrapped.

    The state is saved with the tasks' names and matched by them, in float32 or wider: see :class:`TaskState`.

    Args:
        tasks: the tasks' names, or how many there are (their names are then "0", "1", …).
        process_group: the ranks that share a global batch. If None all ranks do, in a group that is made for the forks
            in the first backward; ``dist.group.WORLD`` saves that group's memory.
        overlap: weigh by the previous step's Gram matrix and presence, for any number of ranks; under
            ``torch.compile`` the result is the same, but the step waits for the all-reduce. Not while a CUDA graph is
            captured with several ranks.
        gram_every: k, at least 1: one step in k measures the Gram matrix.

    Attributes:
        tasks: the tasks' names.
        last_gram: Gram matrix of the last step that measured it, in unscaled units, shape [M, M]; 0 for tasks not
            present.
        last_weights: the weights of the last step, shape [M].
        last_present: which tasks were present in the last step that measured, bool, shape [M].
        replayable: a step on a CUDA device may be replayed from a CUDA graph; each class says it for itself, and a
            subclass that does not is not replayed. Then :meth:`weigh` runs in the first steps and while one is
            recorded, not in each. It must work on tensors of that device, without a look at their values: its
            arguments, and those that the fork keeps as buffers or attributes. Beside them it may depend on attributes
            that are numbers, strings or lists of them, whose changes are seen; not on attributes of the class or on
            anything outside.

    Raises:
        ValueError: there is no task, a name is empty or occurs twice, or ``gram_every`` is below 1.

    Example:
        >>> fork = Fork(["click", "like"])
        >>> shared = torch.ones(4, 3, requires_grad=True)
        >>> for_click, for_like = fork(shared)
        >>> (for_click.mean() + for_like.mean()).backward()
        >>> fork.last_weights
        tensor([1., 1.])
    """

    task_dims: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "arriving": (0, 1), "known_weights": (0,), "known_gram": (0, 1), "backwards": (),
    }  # fmt: skip
    optional_state: ClassVar = ("arriving", "known_weights", "known_gram", "backwards")
    replayable: ClassVar[bool] = True

    last_gram: Tensor
    last_weights: Tensor
    last_present: Tensor
    arriving: Tensor | None
    known_weights: Tensor | None
    known_gram: Tensor | None
    backwards: Tensor | None

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(tasks)
        if type(gram_every) is not int or gram_every < 1:
            raise ValueError(f"gram_every must be a whole number of at least 1, found {gram_every!r}.")
        self.process_group = process_group
        self.overlap = overlap
        self.gram_every = gram_every
        self.pauses = 0  # number of equipoise.paused blocks under way
        self._under_way: tuple[dist.Work, Tensor] | None = None
        self._backwards: int | None = None  # the number in the buffer, kept on the host; None before it has been read
        count = len(self.tasks)
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        # No buffers, so that they are not averaged, broadcast or saved.
        self.last_gram = torch.empty(count, count, dtype=wide)
        self.last_weights = torch.empty(count, dtype=wide)
        self.last_present = torch.empty(count, dtype=torch.bool)
        self.register_buffer("arriving", torch.empty(count, count, dtype=wide) if overlap else None)
        reused = overlap or gram_every > 1
        self.register_buffer("known_weights", torch.empty(count, dtype=wide) if reused else None)
        self.register_buffer("known_gram", torch.empty(count, count, dtype=wide) if gram_every > 1 else None)
        self.register_buffer("backwards", torch.empty((), dtype=torch.int64) if gram_every > 1 else None)
        Fork.reset_parameters(self)
        note_grad_scalers()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self.process_group)] = self.process_group  # ranks are not copied
        other: Self = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and unpickled forks do not pass through __init__.
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.pauses = 0  # a copy made in a pause is not paused: nobody would end it
        note_grad_scalers()

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the module that ``torch.jit.script`` puts in the fork's place."""
        if self.training:
            raise RuntimeError("torch.jit.script takes a fork in eval mode only: call model.eval() before.")
        return Copies(len(self.tasks))

    @property
    def mixes_examples(self) -> bool:
        """True where the gradient that an example sends upstream depends on others; a subclass may know better."""
        return type(self).weigh is not Fork.weigh

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`TaskState.reset_parameters`."""
        self.last_gram.zero_()
        self.last_weights.fill_(1.0)
        self.last_present.zero_()
        if self.known_weights is not None:
            self.known_weights.fill_(1.0)
        if self.arriving is not None:
            self._wait()
            self.arriving.zero_()
        if self.known_gram is not None and self.backwards is not None:
            self.known_gram.zero_()
            self.backwards.zero_()
            self._backwards = None

    def settle(self) -> None:
        """Wait for the Gram matrix under way, and write the number of the step; see :meth:`TaskState.settle`."""
        self._wait()
        if self.backwards is not None and self._backwards is not None:
            self.backwards.fill_(self._backwards)

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return the weights of the tasks' gradients; called once per backward under ``no_grad``, without a host sync.

        Args:
            gram: inner products of the tasks' gradients over the whole (global) batch, float32 or wider, shape
                [M, M]; rows and columns of tasks that are not present are 0.
            present: which tasks have a finite gradient other than 0, bool, shape [M].

        Returns:
            Weights in the dtype of ``gram``, shape [M]; the values of tasks that are not present do not matter.
        """
        return torch.ones_like(gram[0])

    def monitored(self) -> dict[str, Tensor]:
        """Return what the monitor shows per task: name -> copy on the device, shape [M]; a subclass may add to it."""
        return {"weight": self.last_weights.clone()}

    def forward(self, shared: Structure, /) -> tuple[Structure, ...]:
        """Return one copy of ``shared`` per task, in the order of ``tasks``.

        Args:
            shared: a tensor, a ``PackedSequence``, or a tuple, list or dict of those, nested as you like. Tensors that
                need no gradient, None and other plain values in it are handed on as they are.

        Raises:
            TypeError: there is no tensor, a complex one that needs a gradient, or an object that might hide tensors.
            RuntimeError: the fork's weights depend on the whole batch, and Opacus clips the gradient of each example.
        """
        met = self._meet(shared, stacked=False)
        if met is None:
            return (shared,) * len(self.tasks)
        copies, rebuilt = met
        if isinstance(shared, Tensor):
            return cast(tuple[Structure, ...], copies)
        pieces = len(copies) // len(self.tasks)
        return tuple(rebuilt(copies[task * pieces : (task + 1) * pieces]) for task in range(len(self.tasks)))

    def stacked(self, shared: Structure, /) -> Structure:
        """Return the copies of all tasks as one tensor of shape [M, …], for towers that are one batched product.

        The result is a view. Its gradient comes back as one tensor, whose row m is task m's, and is weighed as the
        gradients of separate copies are. A row that lies in one piece of memory is not copied.

        A task whose row is all zeros is absent; so is one without a loss. Its slice of the batched towers' parameters
        then has a gradient of zeros, not None: an optimizer with momentum or weight decay still moves it.

        Of losses that go backward one by one only values tell, so a second backward over a graph waits for the device.

        Args:
            shared: as for :meth:`forward`, without a ``PackedSequence``. Every tensor in it comes back with a first
                dimension of tasks, in eval mode too.

        Raises:
            TypeError: as in :meth:`forward`, or there is a ``PackedSequence``.
            RuntimeError: as in :meth:`forward`.

        Example:
            >>> fork = Fork(["click", "like"])
            >>> z = fork.stacked(torch.ones(4, 3, requires_grad=True))
            >>> torch.bmm(z, torch.zeros(2, 3, 1)).shape
            torch.Size([2, 4, 1])
        """
        met = self._meet(shared, stacked=True)
        with_tasks = functools.partial(tasks_first, tasks=len(self.tasks))
        found: Structure = with_tasks(shared) if met is None else met[1](met[0], with_tasks)
        return found

    def _meet(self, shared: Any, *, stacked: bool) -> tuple[Sequence[Tensor], Callable[..., Any]] | None:
        """Return copies of all tensors that need a gradient, and what rebuilds ``shared``; None without any."""
        if not self.training or self.pauses:
            return None
        # A reentrant checkpoint calls forward within the backward whose losses have been scaled.
        passage = None if torch.compiler.is_compiling() else Passage(enclosing_backward(self))
        if not torch.is_grad_enabled():
            return None
        parts, rebuilt = differentiable_parts(shared)
        if not parts:
            return None
        if passage is not None and per_sample_gradients_possible() and self.mixes_examples:
            self._refuse_per_sample_gradients(parts)
        if self.last_gram.device != parts[0].device:  # engines that move parameters and buffers only
            self._apply_to_attributes(lambda tensor: tensor.to(parts[0].device))
        return Meeting.of(self, passage, stacked, *parts), rebuilt

    def _refuse_per_sample_gradients(self, parts: Sequence[Tensor]) -> None:
        if computed_per_sample(parts):
            raise RuntimeError(
                f"{type(self).__name__} weighs the tasks by the gradients of the whole batch, so that one example "
                "changes the gradients of all others: clipping each of them, as Opacus does, would not bound what an "
                "example can change, and the stated ε would be wrong. Use fixed weights: "
                f"Weighted({list(self.tasks)!r}, [...]); docs/privacy.md says more."
            )

    def step_at_once(self, gradients: Sequence[Tensor], factor: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Do :meth:`measure_step`, :meth:`weigh_step` and :meth:`merge` in one call, or change nothing and return None.

        For forks that merge by weights alone.

        Args:
            gradients: those of all tasks, of the only shared tensor; no gradient is recorded.
            factor: what the losses have been multiplied by; None for 1.

        Returns:
            the gradient that flows on, and the weights; None where the three are to be called.
        """
        return None

    def measure_step(self, pieces: Sequence[Piece], factor: Tensor | None) -> Tensor | None:
        """Return the Gram matrix of this rank's gradients; None in a step that does not measure it; under ``no_grad``.

        Args:
            pieces: the tasks' gradients of each shared tensor.
            factor: what the losses have been multiplied by; None for 1.
        """
        if not self._measures():
            return None
        grams = [gram_matrix(gradients, factor) for piece in pieces if len(gradients := filled(piece))]
        # Other ranks may have gradients when this one has none, and wait for it.
        gram = functools.reduce(torch.add, grams) if grams else torch.zeros_like(self.last_gram)
        return gram.to(self.last_gram.dtype)

    def weigh_step(self, gram: Tensor | None) -> tuple[Tensor, Tensor]:
        """Find the step's weights and the tasks present, from what :meth:`measure_step` gave; under ``no_grad``."""
        if gram is None:
            assert self.known_weights is not None
            self.last_weights.copy_(self.known_weights)
            return self.known_weights.clone(), self.last_present.clone()
        return self.solve_step(self._over_ranks(gram))

    def solve_step(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Find and remember the weights and the tasks present of the Gram matrix of the global batch."""
        return step_of(self, gram)

    def find_step(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Do as :meth:`solve_step`, by PyTorch's operations one after the other; nothing of it may look at a value."""
        diagonal = gram.diagonal()
        if not torch.compiler.is_compiling() and gram.is_cpu:
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
            # A task absent in the previous step may be present now: use its last weight.
            weights = torch.where(present, weights, 1.0 if self.known_weights is None else self.known_weights)
        self.last_gram.copy_(gram)
        self.last_weights.copy_(weights)
        self.last_present.copy_(present)
        self.remember_step()
        return weights, present

    def remember_step(self) -> None:
        """Keep the last step's weights and matrix for steps to come, with the options that reuse them."""
        if self.known_weights is not None:
            self.known_weights.copy_(self.last_weights)
        if self.known_gram is not None:
            self.known_gram.copy_(self.last_gram)

    def _measures(self) -> bool:
        """Return whether this step measures, and count it."""
        if self.known_gram is None or self.backwards is None or torch.compiler.is_compiling() or in_captured_graph():
            return True
        if self._backwards is None:
            # From the device, because a DistributedDataParallel sends what only one rank has loaded to all others.
            self._backwards = int(self.backwards)
            self.last_gram.copy_(self.known_gram)
            self.last_present.copy_(self.known_gram.diagonal() > 0)
        block, place = divmod(self._backwards, self.gram_every)
        self._backwards += 1
        # Multiples of the golden ratio fall evenly on all places, and out of step with tasks that take turns.
        return place == int(block * _GOLDEN % 1 * self.gram_every)

    def merge(self, pieces: Sequence[Piece], weights: Tensor, present: Tensor) -> list[Tensor | None]:
        """Return the gradient that flows on for each piece; None where none arrived."""
        return [balanced(piece, weights) for piece in pieces]

    def _over_ranks(self, gram: Tensor) -> Tensor:
        """Return the Gram matrix of the global batch; with ``overlap`` that of the step before."""
        group = group_of_several(self.process_group)
        if group is not None:
            gram = gram / dist.get_world_size(group) ** 2
        if self.arriving is None:
            return gram if group is None else _summed(gram, group)
        compiled = torch.compiler.is_compiling()
        if not compiled:
            self._wait()
        before = self.arriving.clone()
        if group is None or compiled:
            self.arriving.copy_(gram if group is None else all_reduce(gram, "sum", group))
        else:
            # Not into the buffer itself, which a DistributedDataParallel broadcasts before the next forward pass.
            if in_captured_graph():
                raise RuntimeError(
                    "A fork with overlap=True cannot be captured in a CUDA graph with several ranks: every replay "
                    "would weigh by the matrix of the capture. Make the fork without overlap."
                )
            work = dist.all_reduce(gram, group=group, async_op=True)
            assert work is not None
            self._under_way = work, gram
        return before

    def _wait(self) -> None:
        """Wait until the matrix under way has arrived: it must not be read, replaced or saved before."""
        if self._under_way is not None and self.arriving is not None:
            work, gram = self._under_way
            work.wait()
            self.arriving.copy_(gram)
            self._under_way = None

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        every = f", gram_every={self.gram_every}" if self.gram_every > 1 else ""
        return f"{list(self.tasks)!r}{', overlap=True' if self.overlap else ''}{every}"


def _summed(gram: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the sum over the ranks as a plain tensor, which kernels take: eagerly, what comes back waits when used."""
    found: Tensor = all_reduce(gram, "sum", group)
    if not torch.compiler.is_compiling() and isinstance(found, AsyncCollectiveTensor):
        found = found.wait()
    return found
