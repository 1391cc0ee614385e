"""Optimizers that do not step what the losses reach, and ``shared`` lists that are not what the tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.optim import Optimizer

from equipoise.checking.graph import LossGraph
from equipoise.checking.report import quoted, some
from equipoise.forks.fork import Fork
from equipoise.optim.task_optimizer import TaskOptimizer
from equipoise.optim.wrapper import Wrapper

__all__ = ["balanced_twice", "mistaken_shares", "steps_itself", "unstepped"]


def balanced_twice(graph: LossGraph, optimizers: Sequence[Optimizer]) -> Iterator[str]:
    """Return a fork that weighs gradients, and an optimizer that weighs them again."""
    weighing = [fork for fork in graph.forks if type(fork) is not Fork]
    for optimizer in _task_optimizers(optimizers):
        if weighing:
            names = " and ".join(f"{graph.name_of_fork(fork)} ({type(fork).__name__})" for fork in weighing)
            yield (
                f"Two methods balance the same parameters: {type(optimizer).__name__} and {names}. It works, but each "
                "sees what the other has weighted. Keep one: train the fork with a plain optimizer, or build the "
                "model without the fork."
            )


def mistaken_shares(graph: LossGraph, optimizers: Sequence[Optimizer]) -> Iterator[str]:
    """Return parameters that ``shared`` holds and one task alone reaches, or that several tasks reach and it lacks."""
    tasks = {id(leaf.tensor): leaf.tasks for leaf in graph.leaves(graph.reach)}
    shared = [leaf.tensor for leaf in graph.leaves(graph.reach) if leaf.shared and graph.knows(leaf.tensor)]
    own = {id(leaf.tensor) for leaf in graph.leaves(graph.reach) if leaf.tasks.bit_count() == 1}
    complete = graph.present.bit_count() == len(graph.tasks)
    for optimizer in _task_optimizers(optimizers):
        kind, given = type(optimizer).__name__, list(optimizer.shared)
        if not given:  # shared="auto" before the first backward
            continue
        known = {id(p) for p in given}
        missing = [leaf for leaf in shared if id(leaf) not in known and not steps_itself(leaf)]
        if missing:
            yield (
                f"{kind}'s `shared` lacks parameters that several tasks reach: {some(graph.summary(missing))}. They "
                f"get the plain sum of the tasks' gradients. Give {kind} the model's shared parameters, all of them."
            )
        # The parameters that an absent task reaches are unknown.
        mistaken = [p for p in given if id(p) in own] if complete else []
        if not mistaken:
            continue
        if len(given) == sum(1 for _ in graph.named_parameters()):
            what = "every parameter of the model:"
        else:
            what = "parameters that several tasks do not share:"
        by_task = "; ".join(
            f"only {quoted(graph.names(bits))} reaches {some(graph.summary(leaves))}"
            for bits, leaves in _by_tasks(mistaken, tasks).items()
        )
        yield f"{kind}'s `shared` holds {what} {by_task}. Leave them out: the optimizer steps them as usual."


def unstepped(graph: LossGraph, optimizers: Sequence[Optimizer]) -> Iterator[str]:
    """Return parameters that losses reach and no optimizer steps, and optimizers of another model's parameters."""
    if not optimizers:
        return
    held = {id(p): p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    reached = [leaf.tensor for leaf in graph.leaves(graph.reach) if graph.knows(leaf.tensor)]
    lacking = [leaf for leaf in reached if id(leaf) not in held and not steps_itself(leaf)]
    everywhere = {id(leaf.tensor) for leaf in graph.leaves(graph.reach)}
    strange = [p for p in held.values() if not graph.knows(p) and id(p) not in everywhere]
    if lacking:
        yield (
            f"No optimizer steps {some(graph.summary(lacking))}, which losses reach. Add them to the optimizer, or "
            "freeze them with requires_grad_(False). If another optimizer has them, pass a list of all optimizers."
        )
    if lacking and strange:  # else they are further learned parameters, such as weights of the losses
        shapes = some([str(tuple(p.shape)) for p in strange])
        yield (
            f"The optimizer holds {len(strange)} parameters that the model does not have and no loss reaches (shapes "
            f"{shapes}). Build it from model.parameters() after the model is complete."
        )


def steps_itself(parameter: Tensor) -> bool:
    """True for a parameter that steps in the backward pass, by a fused or a hooked optimizer."""
    return bool(getattr(parameter, "_in_backward_optimizers", ())) or bool(
        getattr(parameter, "_post_accumulate_grad_hooks", None)
    )


def _task_optimizers(optimizers: Sequence[Optimizer]) -> Iterator[TaskOptimizer]:
    """Return the outermost optimizer in each that takes one loss per task."""
    for optimizer in optimizers:
        found: Optimizer = optimizer
        while isinstance(found, Wrapper) and not isinstance(found, TaskOptimizer):
            found = found.optimizer
        if isinstance(found, TaskOptimizer):
            yield found


def _by_tasks(leaves: Sequence[Tensor], tasks: dict[int, int]) -> dict[int, list[Tensor]]:
    found: dict[int, list[Tensor]] = {}
    for leaf in leaves:
        found.setdefault(tasks[id(leaf)], []).append(leaf)
    return found
