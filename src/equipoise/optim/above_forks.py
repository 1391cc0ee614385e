"""The part of the losses' graph above the forks: the towers' parameters, and the branches that the towers read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from equipoise.reachability import kind_of

__all__ = ["AboveForks", "above_forks", "is_fork"]

_UNSEEN: Final = {
    "CompiledFunction": (
        "ConsistentTowers differentiates the towers twice, found a graph of torch.compile above the forks, which "
        "cannot be. Compile the shared layers alone."
    ),
    "CheckpointFunction": (
        "ConsistentTowers differentiates the towers twice, found activation checkpointing of the reentrant kind above "
        "the forks, which hides them. Pass use_reentrant=False to torch.utils.checkpoint."
    ),
}


@dataclass
class AboveForks:
    """The nodes and leaves that losses reach without crossing a fork.

    Attributes:
        crossings: each output of a fork that a loss reaches: the fork's node and the number of the output.
        readers: a node that reads such an output, if there is one.
        leaves: the leaf tensors, by their ids.
    """

    crossings: dict[tuple[Node, int], None] = field(default_factory=dict)
    readers: list[Node] = field(default_factory=list)
    leaves: dict[int, Tensor] = field(default_factory=dict)

    def leaves_below(self) -> dict[int, Tensor]:
        """Return the leaf tensors below the forks, by their ids."""
        found: dict[int, Tensor] = {}
        nodes = list({node: None for node, _ in self.crossings})
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            if (leaf := _leaf(node)) is not None:
                found[id(leaf)] = leaf
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    nodes.append(following)
        return found


def above_forks(losses: Iterable[Tensor]) -> AboveForks:
    """Walk from the losses to the forks and leaves that they reach first.

    Raises:
        RuntimeError: a part on the way cannot be differentiated twice.
    """
    found = AboveForks()
    starts = [get_gradient_edge(loss) for loss in losses]
    edges: list[tuple[Node | None, tuple[Node, int]]] = [(None, (start.node, start.output_nr)) for start in starts]
    seen: set[Node] = set()
    while edges:
        reader, edge = edges.pop()
        node = edge[0]
        if is_fork(node):
            found.crossings[edge] = None
            if reader is not None and not found.readers:
                found.readers.append(reader)
        elif node not in seen:
            seen.add(node)
            if (leaf := _leaf(node)) is not None:
                found.leaves[id(leaf)] = leaf
            elif message := _UNSEEN.get(kind_of(node)):
                raise RuntimeError(message)
            edges += [(node, (following, output)) for following, output in node.next_functions if following is not None]
    return found


def is_fork(node: Node) -> bool:
    """Return whether a node of the graph is a fork's."""
    return kind_of(node) == "Meeting"


def _leaf(node: Any) -> Tensor | None:
    return getattr(node, "variable", None)
