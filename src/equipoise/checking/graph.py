"""The losses' graph with the model's names: the parameters that each task reaches, and by which path."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import groupby

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from equipoise.checking.report import by_module
from equipoise.forks.crossing import Crossing, crossing_of
from equipoise.forks.fork import Fork
from equipoise.reachability import Leaf, Reach, inputs_of, kind_of, reach_of

__all__ = ["LossGraph"]

_LONGEST = 8  # largest number of places named on a path
_SILENT = {"AccumulateGrad", "Clone", "Expand", "Mean", "ReshapeAlias", "Squeeze", "Sum", "T", "ToCopy", "UnsafeView",
           "Unsqueeze", "View"}  # fmt: skip


class LossGraph:
    """The graph of one batch's losses.

    Args:
        model: the model, without wrappers.
        tasks: the tasks' names.
        losses: one scalar per task, None for a task that is absent.

    Attributes:
        forks: the model's forks, with their names in it.
        crossings: each use of a fork that some loss reaches, with its node in the graph.
        reach: the leaves that each task's loss reaches.
        beside: the leaves that it reaches on paths that cross no fork.
        present: the tasks that have a loss with a graph, task m as bit ``1 << m``.
    """

    def __init__(self, model: nn.Module, tasks: Sequence[str], losses: Sequence[Tensor | None]) -> None:
        self.model, self.tasks, self.losses = model, tasks, losses
        self.forks = {module: _plain(name) for name, module in model.named_modules() if isinstance(module, Fork)}
        self.reach = reach_of(losses)
        self.crossings: list[tuple[Node, Crossing]] = []
        for node in self.reach.nodes:
            if (crossing := crossing_of(node)) is not None:
                self.crossings.append((node, crossing))
        nodes = {node for node, _ in self.crossings}
        self.beside = reach_of(losses, stop_at=nodes.__contains__) if nodes else self.reach
        self.present = sum(1 << task for task, loss in enumerate(losses) if loss is not None and loss.requires_grad)
        self._names = {id(p): _plain(name) for name, p in model.named_parameters()}
        self._places = {known: place for place, known in enumerate(self._names)}

    @property
    def compiled(self) -> bool:
        """True if a part of the graph was compiled, in which forks cannot be seen."""
        return any(kind_of(node) == "CompiledFunction" for node in self.reach.nodes)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the model's parameters, each once, named without what wrappers add."""
        return ((self._names[id(p)], p) for p in self.model.parameters())

    def names(self, tasks: int) -> list[str]:
        """Return the names of the tasks in a number of bits."""
        return [name for task, name in enumerate(self.tasks) if tasks >> task & 1]

    def name_of(self, leaf: Tensor) -> str:
        """Return a parameter's name in the model."""
        found = self._names.get(id(leaf))
        return found or f"a tensor of shape {tuple(leaf.shape)} without a name in the model"

    def knows(self, leaf: Tensor) -> bool:
        """True for a parameter of the model."""
        return id(leaf) in self._names

    def name_of_fork(self, fork: Fork) -> str:
        """Return a fork's name in the model."""
        name = self.forks.get(fork)
        return "a fork outside the model" if name is None else f"fork {name!r}" if name else "the fork"

    def summary(self, leaves: Sequence[Tensor]) -> list[str]:
        """Return the names of parameters, those of a whole module put together under the module's."""
        return by_module(map(self.name_of, self.in_order(leaves)), self._names.values())

    def in_order(self, leaves: Iterable[Tensor]) -> list[Tensor]:
        """Return parameters in the model's order."""
        return sorted(leaves, key=lambda leaf: self._places.get(id(leaf), len(self._places)))

    def leads(self, start: Node, end: Node) -> bool:
        """True if a gradient that leaves the node ``start`` arrives at the node ``end``."""
        seen = {start}
        left = [start]
        while left:
            for node, _ in left.pop().next_functions:
                if node is end:
                    return True
                if node is not None and node not in seen:
                    seen.add(node)
                    left.append(node)
        return False

    def readers(self, node: Node, crossing: Crossing) -> list[int]:
        """Return for each branch of a fork's node the tasks whose losses read it."""
        if crossing.stacked:
            return self.reach.rows[node]
        arrived = self.reach.nodes[node]
        branches = map(crossing.branch, range(len(crossing.fork.tasks)))
        return [reduce(int.__or__, (arrived.get(output, 0) for output in branch), 0) for branch in branches]

    def leaves(self, reach: Reach) -> list[Leaf]:
        """Return the leaf tensors, but for the empty ones that sharded tables add."""
        return [leaf for leaf in reach.leaves if self.knows(leaf.tensor) or leaf.tensor.numel()]

    def path_from(self, leaf: Tensor, task: int) -> str:
        """Return one shortest path from a leaf to the loss of ``task`` that crosses no fork."""
        stations = self._stations(task, self.beside, lambda node, _: getattr(node, "variable", None) is leaf)
        return self._words([self.name_of(leaf)], stations, task)

    def path_from_branch(self, node: Node, outputs: range, task: int) -> str:
        """Return one shortest path from these outputs of a fork's node to the loss of ``task``."""
        stations = self._stations(task, self.reach, lambda found, output: found is node and output in outputs)
        return self._words([], stations, task)

    def _stations(self, task: int, reach: Reach, arrived: Callable[[Node, int], bool]) -> list[Node]:
        """Return the nodes between a place in the graph and a task's loss, in that order."""
        loss = self.losses[task]
        assert loss is not None
        edge = get_gradient_edge(loss)
        start = (edge.node, edge.output_nr)
        came_from: dict[tuple[Node, int], tuple[Node, int] | None] = {start: None}
        queue = deque([start])
        while queue:
            here = queue.popleft()
            if arrived(*here):
                stations = []
                above = came_from[here]
                while above is not None:
                    stations.append(above[0])
                    above = came_from[above]
                return stations
            for node, output in inputs_of(*here):
                if reach.nodes.get(node, {}).get(output, 0) >> task & 1 and (node, output) not in came_from:
                    came_from[node, output] = here
                    queue.append((node, output))
        raise AssertionError("asked for a path that is not there")

    def _words(self, first: list[str], stations: Sequence[Node], task: int) -> str:
        """Return a path in words: the modules and forks on it, or the operations where there are none."""
        modules = _once(name for node in stations if (name := self._module_at(node)))
        if first and modules and first[0].startswith(f"{modules[0]}."):
            modules = modules[1:]  # the one that the parameter belongs to
        names = first + (modules or _once(kind for node in stations if (kind := kind_of(node)) not in _SILENT))
        if len(names) > _LONGEST:
            names = [*names[: _LONGEST // 2], "…", *names[-_LONGEST // 2 :]]
        return " → ".join([*names, f"loss of {self.tasks[task]!r}"])

    def _module_at(self, node: Node) -> str:
        """Return the module whose parameters an operation takes, or the fork that it is; empty if neither."""
        if (crossing := crossing_of(node)) is not None:
            return self.name_of_fork(crossing.fork)
        for given, _ in node.next_functions:
            found = given
            while found is not None and kind_of(found) in _SILENT and len(found.next_functions) == 1:
                found = found.next_functions[0][0]
            parameter = getattr(found, "variable", None)
            if parameter is not None and self.knows(parameter):
                return self.name_of(parameter).rpartition(".")[0]
        return ""


def _once(names: Iterable[str]) -> list[str]:
    """Remove repeats in a row."""
    return [name for name, _ in groupby(names)]


def _plain(name: str) -> str:
    """Return a name without the prefixes that ``torch.compile`` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
