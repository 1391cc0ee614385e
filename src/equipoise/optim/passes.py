"""The backward passes of a step: per task, weighted, and for leaves that the optimizer does not hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from equipoise.grad_scaler import factor_of_backward
from equipoise.optim.crossings import crossings_into, seeds_of
from equipoise.optim.gradients import Pending, sum_of, take

__all__ = ["Passes", "gradients_of_each", "other_leaves"]


@dataclass
class Passes:
    """The passes through the graph of one call of ``backward``.

    A step that needs the weighted sum alone makes one pass, where each task enters the shared part of the graph by
    edges of its own (:mod:`equipoise.optim.crossings`). Otherwise a pass is restricted to the leaves that it is for, so
    that no other leaf sees a part of the sum. Leaves that the optimizer does not hold then come last, in one pass with
    the plain sum of the losses: their hooks run once, and one that steps (an optimizer in the backward pass) changes no
    parameter that a later pass needs.

    Attributes:
        balanced: the parameters of which the step needs weighted sums, or each task's gradient.
        towers: the optimizer's other parameters.
        weights: one per loss; None for all 1.
        needs_total: also keep the plain sum of the gradients of ``balanced``.
        ranks: several ranks train together, so that each must make the passes that the others make.
        fused: parameters upstream are stepped by the pass that reaches them, as TorchRec's tables are: end with one
            pass of the weighted losses through everything.
    """

    balanced: list[Parameter]
    towers: list[Parameter]
    weights: list[Tensor] | None
    needs_total: bool
    ranks: bool
    fused: bool

    def __post_init__(self) -> None:
        self._balanced = [p for p in self.balanced if p.requires_grad]
        self._towers = [p for p in self.towers if p.requires_grad]

    def run(self, pending: Pending, losses: dict[int, Tensor]) -> None:
        """Add the gradients of these losses, by task, to what ``pending`` and the parameters hold."""
        for task in losses:
            pending.present[task] = True
        if losses and pending.of_task and self._balanced:
            self._each(pending, losses)
        elif losses:
            self._joint(pending, list(losses.values()))

    def _each(self, pending: Pending, losses: dict[int, Tensor]) -> None:
        others = self._others(losses.values())
        take(self.balanced)
        last = max(losses)
        more = self.fused or bool(others)
        for task, loss in losses.items():
            _pass([loss], [*self._balanced, *self._towers], keep=more or task != last)
            pending.of_task[task] = [
                sum_of(pair) for pair in zip(pending.of_task[task], take(self.balanced), strict=True)
            ]
        if self.fused:
            self._everything(list(losses.values()))
            take(self.balanced)
        else:
            _pass(list(losses.values()), others)
        for p, *of_p in zip(self.balanced, *pending.of_task, strict=True):
            p.grad = sum_of(of_p)

    def _joint(self, pending: Pending, losses: list[Tensor]) -> None:
        if self.weights is None:
            torch.autograd.backward(losses)
            return
        one_pass = not (self.fused or self.needs_total)
        if one_pass and (crossings := crossings_into(self._balanced, losses, alike=self.ranks)) is not None:
            crossings.backward(losses, self.weights)
            return
        plain = [*self._towers, *self._others(losses), *(self._balanced if self.needs_total else [])]
        if not self.fused:
            _pass(losses, self._balanced, self.weights, keep=bool(plain))
        kept = take(self.balanced)
        _pass(losses, plain, keep=self.fused)
        found = take(self.balanced)
        if self.needs_total:
            known = pending.total or [None] * len(found)
            pending.total = [sum_of(pair) for pair in zip(known, found, strict=True)]
        for p, grad in zip(self.balanced, kept, strict=True):
            p.grad = grad
        if self.fused:
            self._everything(losses)

    def _others(self, losses: Iterable[Tensor]) -> list[Tensor]:
        """Return the leaves that the optimizer does not hold, without fused ones, which step by themselves."""
        return [] if self.fused else other_leaves(losses, [*self.balanced, *self.towers])

    def _everything(self, losses: list[Tensor]) -> None:
        """Make one pass of the weighted losses through the whole graph, which steps fused tables but not towers."""
        kept = take(self._towers)
        weights = None if self.weights is None else seeds_of(losses, self.weights)
        torch.autograd.backward(losses, grad_tensors=weights)
        for p, grad in zip(self._towers, kept, strict=True):
            p.grad = grad


def gradients_of_each(
    losses: Iterable[Tensor], leaves: Sequence[Tensor]
) -> tuple[list[list[Tensor | None]], list[Tensor | None]]:
    """Return each loss's gradients of the leaves, and the factor of a ``GradScaler`` that they carry, None if unknown.

    Keeps the graph, and leaves every ``grad`` as it is.
    """
    enclosing = factor_of_backward()  # where `total(losses).backward()` calls this
    gradients: list[list[Tensor | None]] = []
    factors: list[Tensor | None] = []
    noted: list[Tensor | None] = []
    with ExitStack() as hooks:
        for leaf in leaves:
            handle = leaf.register_hook(lambda _: noted.append(factor_of_backward()))  # type: ignore[no-untyped-call]
            hooks.enter_context(handle)
        for loss in losses:
            noted.clear()
            gradients.append(list(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)))
            factors.append(next((factor for factor in noted if factor is not None), enclosing))
    return gradients, factors


def other_leaves(losses: Iterable[Tensor], known: Iterable[Tensor]) -> list[Tensor]:
    """Return the leaves that the losses reach and that are not among ``known``; a walk through the graph.

    Raises:
        RuntimeError: reentrant checkpoints hide the parameters behind them from passes restricted to some leaves.
    """
    own = {id(p) for p in known}
    found: list[Tensor] = []
    nodes = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        following = node.next_functions
        if not following:
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in own and leaf.requires_grad:
                found.append(leaf)
        elif type(node).__name__ == "CheckpointFunctionBackward":
            raise RuntimeError(
                "A step needs the tasks' gradients of the shared parameters, found activation checkpointing of the "
                "reentrant kind, which hides them. Pass use_reentrant=False to torch.utils.checkpoint (Hugging Face: "
                "gradient_checkpointing_kwargs={'use_reentrant': False})."
            )
        for further, _ in following:
            if further is not None and further not in seen:
                seen.add(further)
                nodes.append(further)
    return found


def _pass(
    losses: Sequence[Tensor], leaves: Sequence[Tensor], weights: Sequence[Tensor] | None = None, *, keep: bool = False
) -> None:
    """Make one backward pass that ends at these leaves, if there are any."""
    if leaves:
        cotangents = None if weights is None else seeds_of(losses, weights)
        torch.autograd.backward(losses, cotangents, retain_graph=keep, inputs=leaves)
