"""Checks for misplaced forks: never crossed, bypassed, or with branches that other tasks read."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import Parameter

from equipoise.checking.graph import LossGraph
from equipoise.checking.report import quoted, some
from equipoise.forks.crossing import Crossing
from equipoise.forks.fork import Fork

__all__ = [
    "describe_forks", "forks_gone_round", "forks_in_a_row", "forks_not_crossed", "misread_branches",
    "stacked_copies_not_seen",
]  # fmt: skip


def describe_forks(graph: LossGraph) -> Iterator[str]:
    """Return one sentence per use of a fork."""
    for _, crossing in graph.crossings:
        fork = crossing.fork
        name = graph.name_of_fork(fork)
        yield f"{name[0].upper()}{name[1:]} ({type(fork).__name__}): {', '.join(fork.tasks)}."


def forks_not_crossed(graph: LossGraph) -> Iterator[str]:
    """Return forks that do nothing, that do it twice, or that the model does not own."""
    # Where nothing is shared, as when the shared layers are frozen, there is nothing to balance.
    needed = any(leaf.shared for leaf in graph.leaves(graph.reach))
    uses: dict[Fork, int] = dict.fromkeys(graph.forks, 0)
    for _, crossing in graph.crossings:
        uses[crossing.fork] = uses.get(crossing.fork, 0) + 1
    for fork, times in uses.items():
        name = graph.name_of_fork(fork)
        if not times and not needed:
            continue
        if not times and not fork.training:
            yield (
                f"No loss crosses {name}, which is in eval mode and hands on the shared tensor itself. Call "
                "model.train() before the forward pass."
            )
        elif not times and fork.pauses:
            yield f"No loss crosses {name}, which is paused. Compute the losses outside of equipoise.paused."
        elif not times:
            yield (
                f"No loss crosses {name}: the model does not call it, does not use what it returns, or gives it a "
                "tensor that requires no gradient. Give every tower its branch of what the fork returns."
            )
        elif times > 1:
            yield (
                f"The losses cross {name} in {times} places, and each counts as a step of its averages. Use a fork of "
                "its own for each place, or give it the tensors of all places together, as one tuple."
            )
        if fork not in graph.forks:
            yield (
                f"The losses cross a {type(fork).__name__} over {', '.join(fork.tasks)} that is no part of the model: "
                "it is neither saved nor moved with it. Assign it to an attribute of the model."
            )


def misread_branches(graph: LossGraph) -> Iterator[str]:
    """Return branches that their own task's loss does not reach, or that other tasks' losses reach."""
    for node, crossing in graph.crossings:
        name = graph.name_of_fork(crossing.fork)
        places = _tasks_of_fork(graph, crossing.fork)
        if places is None:
            yield (
                f"{name[0].upper()}{name[1:]} has {len(crossing.fork.tasks)} tasks ({', '.join(crossing.fork.tasks)}), "
                f"and there are {len(graph.tasks)} losses ({', '.join(graph.tasks)}). Pass one loss per task before "
                "they are summed: a dict with the fork's names, or a list with None for a task that is absent."
            )
        else:
            yield from _misread(graph, node, crossing, places)


def stacked_copies_not_seen(graph: LossGraph) -> Iterator[str]:
    """Return uses of forks with stacked copies of which the graph does not say what each task reads."""
    for node, crossing in graph.crossings:
        if crossing.stacked and node not in graph.reach.rows:
            yield (
                f"which task reads which of the stacked copies of {graph.name_of_fork(crossing.fork)}. It cannot be "
                f"followed through {', '.join(graph.reach.mixing)}, or through a tensor of more than 16 million "
                "numbers, for which a smaller batch helps."
            )


def forks_gone_round(graph: LossGraph) -> Iterator[str]:
    """Shared parameters that some loss also reaches on a path that crosses no fork."""
    if not graph.crossings:
        return
    # Several tasks may read an input that requires a gradient; there is nothing in it to balance.
    shared = {
        id(leaf.tensor) for leaf in graph.leaves(graph.reach) if leaf.shared and isinstance(leaf.tensor, Parameter)
    }
    found: dict[int, list[Tensor]] = {}
    for leaf in graph.leaves(graph.beside):
        if id(leaf.tensor) in shared:
            found.setdefault(leaf.tasks, []).append(leaf.tensor)
    forks = " and ".join(dict.fromkeys(graph.name_of_fork(crossing.fork) for _, crossing in graph.crossings))
    for tasks, leaves in found.items():
        names = graph.names(tasks)
        who = f"The loss of {quoted(names)} reaches" if len(names) == 1 else f"The losses of {quoted(names)} reach"
        nearest = sorted(graph.in_order(leaves), key=lambda leaf: leaf.dim() > 1)[-1]  # a weight rather than a bias
        path = graph.path_from(nearest, graph.tasks.index(names[0]))
        yield (
            f"{who} shared parameters without crossing {forks}: {some(graph.summary(leaves))}. What comes this way is "
            f"not balanced. One such path: {path}. Let it start from a branch of the fork, or fork what it reads too: "
            "fork((z, x)) takes several tensors."
        )


def forks_in_a_row(graph: LossGraph) -> Iterator[str]:
    """Return forks that a gradient crosses one after the other, which weigh it twice."""
    weighing = [(node, crossing.fork) for node, crossing in graph.crossings if type(crossing.fork) is not Fork]
    for upper, fork in weighing:
        for lower, other in weighing:
            if lower is not upper and graph.leads(upper, lower):
                yield (
                    f"What comes back through {graph.name_of_fork(fork)} crosses {graph.name_of_fork(other)} as well, "
                    "and is weighted twice. Let every path from a loss to a shared parameter cross one fork: let what "
                    f"{graph.name_of_fork(fork)} is given start from the tensor that {graph.name_of_fork(other)} is "
                    "given, or keep one fork over all that the tasks read of the shared part."
                )


def _misread(graph: LossGraph, node: Node, crossing: Crossing, places: list[int | None]) -> Iterator[str]:
    """Return the branches of one use of a fork; ``places``: the loss of each of the fork's tasks."""
    name, tasks = graph.name_of_fork(crossing.fork), crossing.fork.tasks
    branches = list(map(crossing.branch, range(len(tasks))))
    readers = graph.readers(node, crossing)
    for place, task in enumerate(places):
        if task is None or not graph.present >> task & 1:
            continue
        others = [other for other, found in enumerate(readers) if other != place and found >> task & 1]
        own = readers[place] >> task & 1
        unused = "" if readers[place] else f" No loss reads branch {tasks[place]!r}."
        if not own and others:
            path = graph.path_from_branch(node, branches[others[0]], task)
            yield (
                f"The loss of {graph.tasks[task]!r} reads branch {quoted(tasks[other] for other in others)} of {name} "
                f"instead of its own: {path}.{unused} Give its tower branch {tasks[place]!r}."
            )
        elif not own:
            yield (
                f"The loss of {graph.tasks[task]!r} does not read its branch of {name}.{unused} Give its tower branch "
                f"{tasks[place]!r}."
            )
        for other in others if own else []:
            path = graph.path_from_branch(node, branches[other], task)
            yield (
                f"Branch {tasks[other]!r} of {name} also carries the loss of {graph.tasks[task]!r}: {path}. The fork "
                f"then takes both for the gradient of {tasks[other]!r} and weighs them together. Let what several "
                "tasks read stand before the fork, or read the tensor that the fork was given."
            )
    strangers = graph.present & ~sum(1 << task for task in places if task is not None)
    for task in (task for task in range(len(graph.tasks)) if strangers >> task & 1):
        read = [other for other, found in enumerate(readers) if found >> task & 1]
        if read:
            path = graph.path_from_branch(node, branches[read[0]], task)
            yield (
                f"The loss of {graph.tasks[task]!r} reads branch {quoted(tasks[other] for other in read)} of {name}, "
                f"which has no branch for it: {path}. Give the fork this task, too."
            )


def _tasks_of_fork(graph: LossGraph, fork: Fork) -> list[int | None] | None:
    """Return the loss of each of the fork's tasks, by name or else by position; None if neither fits."""
    if set(fork.tasks) & set(graph.tasks):
        return [graph.tasks.index(task) if task in graph.tasks else None for task in fork.tasks]
    return list(range(len(fork.tasks))) if len(fork.tasks) == len(graph.tasks) else None
