"""The last shared layer: the shared parameters nearest to the tasks' own parts, found in the graph of the losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn import Parameter

from equipoise.reachability import is_elementwise, kind_of, losses_first

__all__ = ["HiddenLayersError", "NoLastLayerError", "goes_past", "last_shared_layer"]


class NoLastLayerError(RuntimeError):
    """The graph of the losses does not say which shared layer is the last."""


class HiddenLayersError(NoLastLayerError):
    """A compiled graph hides which shared layer is the last."""


def last_shared_layer(
    losses: Iterable[Tensor], shared: Sequence[Parameter], ranks: dist.ProcessGroup | None = None
) -> list[Parameter]:
    """Return the shared parameters above which no shared weight matrix stands; a walk through the graph.

    Parameter q stands above p if a path from a loss to p goes through an operation on q: a layer with q takes in what a
    layer with p has given out. Parameters that stand above each other, as in a recurrent layer, belong together.
    Vectors (biases, the scales of a normalisation) hide nothing: of a linear layer and the normalisation behind it both
    count. The weights of an operation may also be made of parameters: transposed, cast, multiplied with each other.

    So the last shared layer is the last linear layer of a shared bottom; the last layer of every expert of MMoE; and of
    PLE that of the shared experts at the top, since these stand above all that is below them.

    Args:
        losses: those that are present.
        shared: the parameters that tasks share.
        ranks: those that train together; what stands above on one of them does so for all.

    Returns:
        In the order of ``shared``; empty if no loss on any rank reaches a shared parameter.

    Raises:
        HiddenLayersError: several weight matrices enter one compiled graph, on any rank.
        NoLastLayerError: each parameter has another one above it.
    """
    above, hidden = _parameters_above(losses, shared)
    matrices = {place for place, p in enumerate(shared) if p.dim() > 1}
    reached = [place in above for place in range(len(shared))]
    covered = [
        any(place not in above[other] for other in above.get(place, set()) & matrices) for place in range(len(shared))
    ]
    if ranks is not None:
        flags = torch.tensor([*reached, *covered, hidden], dtype=torch.int32, device=shared[0].device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=ranks)
        *both, hidden = flags.tolist()
        reached, covered = both[: len(shared)], both[len(shared) :]
    if hidden:
        raise HiddenLayersError(
            f"torch.compile hides which shared layer is the last: {hidden} shared weight matrices enter one compiled "
            "graph"
        )
    found = [p for p, here, lower in zip(shared, reached, covered, strict=True) if here and not lower]
    if any(reached) and not found:
        raise NoLastLayerError("no shared layer is the last: each shared parameter stands below another weight matrix")
    return found


def goes_past(
    losses: Iterable[Tensor],
    shared: Sequence[Parameter],
    layer: Sequence[Parameter],
    ranks: dist.ProcessGroup | None = None,
) -> bool:
    """Return whether a path from a loss to another shared parameter goes past this layer; a walk through the graph.

    Gradients of the layer then say nothing of what comes down that path. So it is with MMoE, whose gates read the
    embeddings, and with PLE, where each task reads experts of its own beside the shared ones at the top.

    Args:
        losses: those that are present.
        shared: the parameters that tasks share.
        layer: some of these.
        ranks: those that train together; a path on one of them counts for all.
    """
    inside = {id(p): place for place, p in enumerate(layer)}
    others = {id(p) for p in shared} - inside.keys()
    roots = [get_gradient_edge(loss).node for loss in losses]
    nodes = losses_first(roots)
    made_of = _made_of_parameters(nodes, inside)
    past, found = set(roots), False
    for node in nodes:
        following = [after for after, _ in node.next_functions if after is not None]
        if node in past and (node in made_of or not any(made_of.get(after) for after in following)):
            found = found or id(getattr(node, "variable", None)) in others
            past.update(following)
    if ranks is not None:
        flag = torch.tensor([found], dtype=torch.int32, device=shared[0].device)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=ranks)
        found = bool(flag.item())
    return found


def _parameters_above(losses: Iterable[Tensor], shared: Sequence[Parameter]) -> tuple[dict[int, set[int]], int]:
    """Return the shared parameters above each one that is reached, by their places in ``shared``, and those hidden.

    Parameters of one operation stand above each other, and above themselves. Hidden is the largest number of shared
    weight matrices that enter one compiled graph; 0 where none holds several.
    """
    place_of = {id(p): place for place, p in enumerate(shared)}
    nodes = losses_first([get_gradient_edge(loss).node for loss in losses])
    made_of = _made_of_parameters(nodes, place_of)
    above: dict[int, set[int]] = {}
    arrived: dict[Node, set[int]] = {node: set() for node in nodes}
    hidden = 0
    for node in nodes:
        given = [following for following, _ in node.next_functions if following is not None]
        leaf = getattr(node, "variable", None)
        if id(leaf) in place_of:
            above[place_of[id(leaf)]] = arrived[node]
        own: set[int] = set()
        if node not in made_of:
            own.update(*(made_of[parameters] for parameters in given if parameters in made_of))
            matrices = sum(shared[place].dim() > 1 for place in own)
            if kind_of(node) == "CompiledFunction" and matrices > 1:
                hidden = max(hidden, matrices)
        for following in given:
            arrived[following] |= arrived[node] | own
    return above, hidden


def _made_of_parameters(nodes: Sequence[Node], place_of: dict[int, int]) -> dict[Node, set[int]]:
    """Return the nodes that are leaves, or made of leaves alone, with the places of the shared parameters in them."""
    found: dict[Node, set[int]] = {}
    for node in reversed(nodes):
        leaf = getattr(node, "variable", None)
        given = [following for following, _ in node.next_functions]
        if leaf is not None:
            found[node] = {place_of[id(leaf)]} if id(leaf) in place_of else set()
        elif is_elementwise(node) or kind_of(node) == "WeightNormInterface":
            parts = [found[following] for following in given if following in found]
            if len(parts) == len(given):
                found[node] = set().union(*parts)
    return found
