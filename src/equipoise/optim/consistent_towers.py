"""Consistent towers: their parameters also learn to turn the tasks' gradients at a fork towards the joint one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.grad_scaler import factor_of_backward, note_factor, note_grad_scalers
from equipoise.optim.above_forks import AboveForks, above_forks, is_fork
from equipoise.optim.averaging import averaging_of, refuse_unaveraged, refuse_unknown_ranks
from equipoise.optim.checks import check_not_per_sample, losses_in_order
from equipoise.optim.gradients import sum_of, take
from equipoise.optim.task_names import Losses, check_names
from equipoise.optim.total import total_of
from equipoise.optim.wrapper import Wrapper
from equipoise.reachability import reach_of

__all__ = ["ConsistentTowers"]

_NO_LOSS: Final = (
    "ConsistentTowers.backward found no loss on this rank, but a fork weighs by the gradients of all ranks in every "
    "backward pass: give it a loss that is 0, such as 0 * logits.sum()."
)
_NO_FORK: Final = (
    "ConsistentTowers needs the tasks' gradients at a fork, found none in the losses' graph. Put a fork between the "
    "shared layers and the towers, such as Bargaining(tasks, exponent=2.0) of equipoise.forks; it must be in training "
    "mode, not paused, and its input must require a gradient."
)
_ON_BOTH_SIDES: Final = (
    "ConsistentTowers needs the towers' parameters apart from those below the fork, found {} that losses reach both "
    "through a fork and beside it, of shapes {}. Let every path to shared parameters cross a fork "
    "(docs/where-to-fork.md; equipoise.check names the paths)."
)


class ConsistentTowers(Wrapper):
    r"""Adds a gradient to each tower that turns its task's gradient at the fork towards the joint one.

    The lower level of ConsMTL (Qin et al., "Towards Consistent Multi-Task Learning: Unlocking the Potential of
    Task-Specific Parameters", CVPR 2025), whose upper level is a fork with the weights of FairGrad for α = 2. The text
    of the paper could not be had: this is the formula of a public reimplementation.

    With ``z`` the shared representation, ``δ_i = ∂L_i / ∂z`` and ``δ`` what the fork sends on, the joint gradient
    ``Σ w_i δ_i``, the parameters ``θ_i`` of the tower of task i step with

        ∂L_i / ∂θ_i + c_i ∂E_i / ∂θ_i,    E_i = −λ ⟨δ_i, δ⟩,    c_i = min(1, limit ‖∂L_i / ∂θ_i‖ / ‖∂E_i / ∂θ_i‖),

    δ taken as a constant. ``θ_i`` are the optimizer's parameters that the loss reaches without crossing a fork. Those
    that several tasks reach there (towers that are one batched product) have the sum of their gradients and one limit
    together. All other parameters step with the gradient that the fork gives them, and with a single task so do all.
    The length of δ is what the fork's own documentation says of its weights, not that of the reimplementation.

    :meth:`backward` makes one backward pass through the shared layers, as ``sum(losses).backward()`` does, but three
    through the towers, one of which is differentiated once more. So the towers' operations must have second
    derivatives, which compiled towers do not have; the shared layers may be compiled. A task without a gradient in a
    batch has no part in this. Hooks on tensors inside a tower see every pass, and a hook on a branch that changes its
    gradient changes it twice.

    E is a product of two gradients: the factor of a ``GradScaler`` is taken out of it once, so that both parts carry it
    alike. It can be clipped and unscaled as any gradient, since :meth:`backward` leaves all of it in ``grad``.

    Over several ranks gradients are averaged here, and limits are those of the global batch.

    Args:
        optimizer: any optimizer over all the model's parameters.
        pull: λ, at least 0. The default is that of the reimplementation.
        limit: the longest extra gradient of a tower, over the length of its own; at least 0.
        tasks: the tasks' names, in the order of the losses; "0", "1", … if None, or as a dict of losses names them.
        data_parallel: see :class:`equipoise.PUB`.

    Raises:
        ValueError: ``pull`` or ``limit`` is negative.

    Example:
        >>> from equipoise.forks import Bargaining
        >>> bottom, towers = torch.nn.Linear(3, 2), torch.nn.ModuleList(torch.nn.Linear(2, 1) for _ in range(2))
        >>> fork = Bargaining(["click", "buy"], exponent=2.0)
        >>> sgd = torch.optim.SGD([*bottom.parameters(), *towers.parameters()], lr=0.1)
        >>> optimizer = ConsistentTowers(sgd, tasks=["click", "buy"])
        >>> branches = fork(bottom(torch.randn(4, 3)))
        >>> optimizer.zero_grad()
        >>> optimizer.backward([tower(z).square().mean() for tower, z in zip(towers, branches)])
        >>> optimizer.step()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        pull: float = 1.0,
        limit: float = 0.1,
        tasks: Sequence[str] | None = None,
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> None:
        for name, value in (("pull", pull), ("limit", limit)):
            if not 0 <= value < torch.inf:
                raise ValueError(f"{name} must be at least 0 and finite, found {value}.")
        super().__init__(optimizer)
        self.pull = pull
        self.limit = limit
        self.tasks: tuple[str, ...] = () if tasks is None else check_names(tasks)
        self._checked = False
        self._tasks_of: dict[Tensor, int] = {}  # parameters above the forks -> their tasks, task m as bit 1 << m
        self._looked_at: set[int] = set()  # tasks whose graphs these are from
        self._averaging = averaging_of(data_parallel, self.param_groups, type(self).__name__)
        note_grad_scalers()
        if self._averaging is not None:
            self._averaging.take_over()

    def backward(self, losses: Losses, /) -> None:
        """Take the place of ``sum(losses).backward()``; several calls before a step add up, each with its own limit.

        Args:
            losses: as for :meth:`equipoise.PUB.backward`.

        Raises:
            TypeError: ``losses`` has no order, or an entry is neither a tensor nor None.
            ValueError: the number of losses has changed, a name is not known, or a loss is not a scalar.
            RuntimeError: no loss crosses a fork; a parameter is reached both through a fork and beside it; a tower is
                compiled or lies in a reentrant checkpoint; a process group was created after this optimizer; or, on
                several ranks, the losses reach a parameter of another optimizer, whose gradient would not be averaged.
        """
        found, self.tasks = losses_in_order(losses, self.tasks, type(self).__name__)
        present = [loss for loss in found if loss is not None]
        if not self._checked:
            check_not_per_sample(self.param_groups, type(self).__name__)
            if self._averaging is None:
                refuse_unknown_ranks(type(self).__name__)
            self._checked = True
        if not present:
            if self._averaging is not None:
                raise RuntimeError(_NO_LOSS)
            return
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        towers = self._towers(found, parameters) if len(self.tasks) > 1 else None
        before = take(parameters)
        extra: list[Tensor | None] = [None] * len(parameters)
        if towers is None:
            torch.autograd.backward(present)
        else:
            extra = self._passes(present, towers, parameters)
        reached = [self._reached_by(p) for p in parameters]
        grads = take(parameters)
        if self._averaging is not None:
            both, flags = self._averaging.average(
                [*parameters, *parameters], [*grads, *extra], [bit for bits in reached for bit in bits]
            )
            count, width = len(parameters), len(self.tasks)
            grads, extra = both[:count], both[count:]
            # Each rank's δ is a part of the global batch's, times the number of ranks.
            ranks = dist.get_world_size(self._averaging.group)
            extra = [None if push is None else push / ranks for push in extra]
            reached = [tuple(flags[place * width : (place + 1) * width]) for place in range(count)]
        self._shorten(extra, grads, reached)
        for p, *parts in zip(parameters, before, grads, extra, strict=True):
            p.grad = sum_of(parts)

    def total(self, losses: Losses, /) -> Tensor:
        """Return a scalar for those who call ``backward()`` themselves; see :meth:`equipoise.PUB.total`."""
        found, self.tasks = losses_in_order(losses, self.tasks, type(self).__name__)
        return total_of(found, self.backward)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make the wrapped optimizer's step."""
        return self.optimizer.step(closure)

    def _towers(self, losses: Sequence[Tensor | None], parameters: Sequence[Parameter]) -> AboveForks:
        """Return what the losses reach above the forks; looks closer where they reach something for the first time."""
        towers = above_forks(loss for loss in losses if loss is not None)
        if not towers.crossings:
            raise RuntimeError(_NO_FORK)
        tasks = {task for task, loss in enumerate(losses) if loss is not None}
        unknown = [leaf for leaf in towers.leaves.values() if leaf not in self._tasks_of]
        if unknown or not tasks <= self._looked_at:
            below = towers.leaves_below()
            if both := [towers.leaves[key] for key in towers.leaves.keys() & below.keys()]:
                raise RuntimeError(_ON_BOTH_SIDES.format(len(both), [tuple(leaf.shape) for leaf in both][:5]))
            known = {id(p) for p in parameters}
            if self._averaging is not None and not self._averaging.fused:
                others = [leaf for key, leaf in (towers.leaves | below).items() if key not in known]
                refuse_unaveraged(others, type(self).__name__)
            # Not inputs that require a gradient, which are others in every step: this look waits for the device.
            known |= {id(leaf) for leaf in unknown if isinstance(leaf, Parameter)}
            if not tasks <= self._looked_at or any(id(leaf) in known for leaf in unknown):
                for leaf in reach_of(losses, stop_at=is_fork).leaves:
                    if id(leaf.tensor) in known:
                        self._tasks_of[leaf.tensor] = self._tasks_of.get(leaf.tensor, 0) | leaf.tasks
                self._looked_at |= tasks
        return towers

    def _reached_by(self, p: Parameter) -> tuple[bool, ...]:
        """Return for each task whether it reaches a parameter above the forks."""
        found = self._tasks_of.get(p, 0)
        return tuple(bool(found >> task & 1) for task in range(len(self.tasks)))

    def _passes(self, losses: list[Tensor], towers: AboveForks, parameters: Sequence[Parameter]) -> list[Tensor | None]:
        """Make the backward passes; return ∂E/∂θ of each parameter."""
        factor = factor_of_backward()  # where `total(losses).backward()` calls this
        noted: list[Tensor | None] = []
        handles = [reader.register_hook(lambda *_: noted.append(factor_of_backward())) for reader in towers.readers]
        try:
            edges = [GradientEdge(node, output) for node, output in towers.crossings]
            deltas = torch.autograd.grad(losses, edges, create_graph=True, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        factor = next((one for one in noted if one is not None), factor)
        joint = _through_forks(edges, deltas, factor)
        extra = self._extra(deltas, joint, factor, [p for p in parameters if id(p) in towers.leaves])
        if towers.leaves:
            torch.autograd.backward(losses, inputs=list(towers.leaves.values()))
        return [extra.get(id(p)) for p in parameters]

    def _extra(
        self,
        deltas: Sequence[Tensor | None],
        joint: Sequence[Tensor | None],
        factor: Tensor | None,
        theta: list[Parameter],
    ) -> dict[int, Tensor]:
        """Return ∂E/∂θ of each parameter that it reaches."""
        pairs = [
            (own, wanted)
            for own, wanted in zip(deltas, joint, strict=True)
            if own is not None and wanted is not None and own.requires_grad
        ]
        if not pairs or not theta:
            return {}
        # At most 1 in size, so that no product of two gradients leaves the range of half precision; and without entries
        # that are not finite, which would spoil the towers of tasks whose gradients are.
        pieces = {id(g): g.nan_to_num(0.0, 0.0, 0.0) for g in {id(g): g for _, g in pairs}.values()}
        wide = functools.reduce(torch.promote_types, (g.dtype for g in pieces.values()), torch.float32)
        sizes = [torch.linalg.vector_norm(g, torch.inf).to(theta[0].device, wide) for g in pieces.values()]
        largest = torch.stack(sizes).amax().clamp(min=torch.finfo(wide).tiny)
        pieces = {key: g / largest.to(g.device, g.dtype) for key, g in pieces.items()}
        found = torch.autograd.grad(
            [own for own, _ in pairs], theta, [pieces[id(g)].expand_as(own) for own, g in pairs],
            retain_graph=True, allow_unused=True,
        )  # fmt: skip
        scale = largest * -self.pull
        if factor is not None:
            scale = scale / factor.to(scale.device)
        return {id(p): g * scale.to(g.device, g.dtype) for p, g in zip(theta, found, strict=True) if g is not None}

    def _shorten(
        self, extra: list[Tensor | None], own: Sequence[Tensor | None], reached: Sequence[tuple[bool, ...]]
    ) -> None:
        """Shorten the extra gradients of each tower to the limit, in place of the list.

        Args:
            extra: one per parameter.
            own: the parameters' gradients of the losses.
            reached: for each parameter the tasks that reach it above the forks.
        """
        towers: dict[tuple[bool, ...], list[int]] = {}
        for place, tasks in enumerate(reached):
            towers.setdefault(tasks, []).append(place)
        for places in towers.values():
            pushes = [push for place in places if (push := extra[place]) is not None]
            if not pushes:
                continue
            most = self.limit * _length([g for place in places if (g := own[place]) is not None], like=pushes[0])
            length = _length(pushes, like=pushes[0])
            share = torch.where(length > most, most / length, 1.0)
            for place in places:
                if (push := extra[place]) is not None:
                    extra[place] = push * share.to(push.device, push.dtype)

    def __repr__(self) -> str:
        return f"ConsistentTowers({self._inner_repr()}, pull={self.pull}, limit={self.limit})"


def _through_forks(
    edges: Sequence[GradientEdge], deltas: Sequence[Tensor | None], factor: Tensor | None
) -> list[Tensor | None]:
    """Make the backward pass of the forks and the shared layers; return for each edge what its fork sent on.

    That is one tensor for all copies of a piece.

    Args:
        edges: outputs of forks.
        deltas: the gradient that has arrived at each.
        factor: what a ``GradScaler`` has multiplied them by; None for 1 or where it is not known.
    """
    sent: dict[Any, Sequence[Tensor | None]] = {}
    handles = []
    for node in {edge.node for edge in edges}:
        if factor is not None:
            handles.append(node.register_prehook(lambda _: note_factor(factor)))
        handles.append(node.register_hook(lambda inputs, _, node=node: sent.update({node: inputs})))
    try:
        found = [(edge, g.detach()) for edge, g in zip(edges, deltas, strict=True) if g is not None]
        torch.autograd.backward([edge for edge, _ in found], [g for _, g in found])
    finally:
        for handle in handles:
            handle.remove()
    return [None if g is None else sent[edge.node][_piece(edge)] for edge, g in zip(edges, deltas, strict=True)]


def _piece(edge: GradientEdge) -> int:
    """Return the number of the piece that an output of a fork copies."""
    node: Any = edge.node
    return edge.output_nr if node.stacked else edge.output_nr % int(node.pieces)


def _length(gradients: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the length of gradients together, on the device of ``like``, in float32 or wider; 0 of none."""
    wide = torch.promote_types(like.dtype, torch.float32)
    values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    norms = [norm.to(like.device) for norm in torch._foreach_norm(values, dtype=wide)] if values else []
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=wide, device=like.device)
