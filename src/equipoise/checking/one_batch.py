"""The check of one batch: forks, branches, shared parameters and optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.checking.graph import LossGraph
from equipoise.checking.placement import (
    describe_forks,
    forks_gone_round,
    forks_in_a_row,
    forks_not_crossed,
    misread_branches,
    stacked_copies_not_seen,
)
from equipoise.checking.report import Report
from equipoise.checking.steps import balanced_twice, mistaken_shares, steps_itself, unstepped
from equipoise.forks.fork import Fork
from equipoise.reachability import Leaf

__all__ = ["Losses", "check"]

Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None]


def check(
    model: nn.Module,
    losses: Losses | Callable[[], Losses],
    /,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> Report:
    """Check that every shared parameter is balanced, and that every task reads its own branch of every fork.

    Call it once, between the forward and the backward pass of a training step. It finds forks that no loss crosses or
    that a loss bypasses, branches that no task reads or that carry another task's loss, missing or surplus parameters
    in the ``shared`` of PUB or AdaTask, and parameters that no optimizer steps.

    It runs no backward pass, writes no gradient and changes no fork's state. It takes milliseconds, and waits for the
    device only if a loss takes a slice of a tensor, such as ``logits[:, 0]``.

    Parts that it cannot look into (compiled models, reentrant checkpoints, FSDP) are named in ``report.unseen``, and
    ``report.ok`` is then False. Parameters that a custom autograd function uses without taking them as inputs are
    missed silently.

    Args:
        model: the model, as it is or wrapped by DDP, ``torch.compile`` or TorchRec.
        losses: the tasks' losses of one batch, in the order of the fork's tasks or by their names; None for a task that
            is absent. A function that returns them is called once; the model's buffers and the random state are put
            back afterwards.
        optimizer: the optimizer, or all of them, to check what they step and share.

    Returns:
        Shared parameters and problems; ``report.ok`` is True if there are no problems and all parts could be seen.

    Raises:
        TypeError: a loss is neither a tensor nor None.
        ValueError: there are no losses, or one is not a scalar.

    Example:
        >>> from equipoise import MultiBalance
        >>> class Ranker(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.bottom = nn.Linear(4, 3)
        ...         self.fork = MultiBalance(["click", "buy"])
        ...         self.click, self.buy = nn.Linear(3, 1), nn.Linear(3, 1)
        ...
        ...     def forward(self, x):
        ...         z_click, z_buy = self.fork(self.bottom(x))
        ...         return self.click(z_click).mean(), self.buy(z_click).mean()  # the second should read z_buy
        >>> model = Ranker()
        >>> report = check(model, model(torch.ones(2, 4)))
        >>> report.ok
        False
        >>> print(report.problems[0])
        The loss of 'buy' reads branch 'click' of fork 'fork' instead of its own: buy → loss of 'buy'. \
No loss reads branch 'buy'. Give its tower branch 'buy'.
    """
    inner = _unwrapped(model)
    if callable(losses):
        with _put_back(inner):
            losses = losses()
    graph = LossGraph(inner, *_by_task(losses, inner))
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    report = Report(list(graph.tasks), unseen=_unseen(graph))
    report.problems += [*_losses_apart(graph), *balanced_twice(graph, optimizers)]
    if not report.unseen:
        _describe(report, graph)
        report.problems += [
            *forks_not_crossed(graph),
            *misread_branches(graph),
            *forks_gone_round(graph),
            *forks_in_a_row(graph),
            *mistaken_shares(graph, optimizers),
            *unstepped(graph, optimizers),
        ]
    return report


def _describe(report: Report, graph: LossGraph) -> None:
    """Describe which task reaches what."""
    leaves = graph.leaves(graph.reach)

    def names(wanted: Callable[[Leaf], bool]) -> list[str]:
        return list(map(graph.name_of, graph.in_order(leaf.tensor for leaf in leaves if wanted(leaf))))

    report.shared = names(lambda leaf: leaf.shared)
    report.sliced = names(lambda leaf: not leaf.shared and leaf.tasks.bit_count() > 1)
    for task, name in enumerate(graph.tasks):
        report.own[name] = names(partial(_alone, task))
    reached = {id(leaf.tensor) for leaf in leaves}
    report.unreached = [
        name for name, p in graph.named_parameters() if p.requires_grad and id(p) not in reached and not steps_itself(p)
    ]
    report.forks = list(describe_forks(graph))


def _alone(task: int, leaf: Leaf) -> bool:
    """True if the task alone reaches the leaf."""
    return leaf.tasks == 1 << task


def _unseen(graph: LossGraph) -> list[str]:
    """Return descriptions of all that hides parameters or forks."""
    found = [*graph.reach.unseen, *stacked_copies_not_seen(graph)]
    if graph.compiled and len({crossing.fork for _, crossing in graph.crossings}) < len(graph.forks):
        found.append("a fork may be inside a compiled graph. Ask the same model before torch.compile.")
    sharded = [p for p in graph.model.parameters() if hasattr(p, "placements")]  # DTensors, slow to import
    strangers = [leaf for leaf in graph.leaves(graph.reach) if isinstance(leaf.tensor, nn.Parameter)]
    if sharded and any(not graph.knows(leaf.tensor) for leaf in strangers):
        found.append(
            "FSDP puts other tensors in the place of the model's parameters. Ask the same model before fully_shard."
        )
    return found


def _losses_apart(graph: LossGraph) -> Iterator[str]:
    """Return losses that have nothing to do with the model."""
    for task, loss in enumerate(graph.losses):
        if loss is None:
            continue
        reached = any(leaf.tasks >> task & 1 and graph.knows(leaf.tensor) for leaf in graph.leaves(graph.reach))
        if not loss.requires_grad:
            yield (
                f"The loss of {graph.tasks[task]!r} requires no gradient: it was computed under torch.no_grad or from "
                "detached tensors. Compute it from the model's outputs; pass None for a task that is absent."
            )
        elif not reached and not graph.reach.unseen:
            yield (
                f"The loss of {graph.tasks[task]!r} depends on no parameter of the model. Compute it from the outputs "
                "of the model that you pass."
            )


def _by_task(losses: Losses, model: nn.Module) -> tuple[list[str], list[Tensor | None]]:
    """Return the tasks' names and their losses."""
    if isinstance(losses, Mapping):
        tasks, found = [str(task) for task in losses], list(losses.values())
    elif isinstance(losses, Tensor):
        raise TypeError(
            f"Expected one scalar loss per task, found one tensor of shape {tuple(losses.shape)}. Pass the losses as a "
            "list, or as a dict with the tasks' names, before they are summed."
        )
    elif not isinstance(losses, Iterable):
        raise TypeError(
            f"Expected one scalar loss per task, found {type(losses).__name__}. Pass a list of losses, or a dict with "
            "the tasks' names."
        )
    else:
        found = list(losses)
        known = (fork.tasks for fork in model.modules() if isinstance(fork, Fork) and len(fork.tasks) == len(found))
        tasks = list(next(known, map(str, range(len(found)))))
    if all(loss is None for loss in found):
        raise ValueError("Expected the loss of at least one task, found none. Take a batch in which tasks have labels.")
    for task, loss in zip(tasks, found, strict=True):
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise ValueError(
                f"The loss of {task!r} must be a scalar, found shape {tuple(loss.shape)}. Average it over the batch."
            )
    return tasks, found


# By name, because the modules of two of them are slow to import.
_WRAPPED = {"DistributedDataParallel": "module", "DistributedModelParallel": "module", "OptimizedModule": "_orig_mod"}


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, ``torch.compile`` and TorchRec's wrapper."""
    while (inside := _WRAPPED.get(type(model).__name__)) is not None:
        model = getattr(model, inside)
    return model


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers and the random state back."""
    buffers = list(model.buffers())
    kept = [buffer.clone() for buffer in buffers]
    with torch.random.fork_rng(
        devices=sorted({buffer.get_device() for buffer in model.parameters() if buffer.is_cuda})
    ):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in zip(buffers, kept, strict=True):
                    buffer.copy_(before)
