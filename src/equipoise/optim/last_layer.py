"""The last shared layer: the shared parameters nearest to the tasks' own parts, found in the graph of the losses."""

from __future__ import annotations

from collections.abc import Iterable, Reversible, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn import Parameter

from equipoise.reachability import is_elementwise, kind_of, losses_first

__all__ = ["HiddenLayersError", "NoLastLayerError", "last_shared_layer", "refuse_what_goes_past"]


class NoLastLayerError(RuntimeError):
    """The graph of the losses does not say which shared layer is the last."""


class HiddenLayersError(NoLastLayerError):
    """A compiled graph hides which shared layer is the last, or whether a path goes past it."""


def last_shared_layer(
    losses: Iterable[Tensor], shared: Sequence[Parameter], ranks: dist.ProcessGroup | None = None
) -> list[Parameter]:
    """Return the shared parameters above which no shared weight matrix stands; a walk through the graph.

    Parameter q stands above p if a path from a loss to p goes through an operation on q: a layer with q takes in what a
    layer with p has given out. Parameters that stand above each other, as in a recurrent layer, belong together.
    Vectors (biases, the scales of a normalisation) hide nothing: of a linear layer and the normalisation behind it both
    count. A tensor with one size above 1 alone is a vector. The weights of an operation may also be made of parameters:
    transposed, cast, multiplied with each other.

    So the last shared layer is the last linear layer of a shared bottom; the last layer of every expert of MMoE; and of
    PLE that of the shared experts at the top, since these stand above all that is below them.

    Args:
        losses: those that are present.
        shared: the parameters that tasks share.
        ranks: those that train together; what stands above on one of them does so for all.

    Returns:
        In the order of ``shared``; empty if no loss on any rank reaches a shared parameter.

    Raises:
        HiddenLayersError: the layer lies in a compiled graph with further shared weight matrices, on any rank.
        NoLastLayerError: each parameter has another one above it.
    """
    above, hidden = _parameters_above(losses, shared)
    matrices = {place for place, p in enumerate(shared) if _is_matrix(p)}
    reached = [place in above for place in range(len(shared))]
    covered = [
        any(place not in above[other] for other in above.get(place, set()) & matrices) for place in range(len(shared))
    ]
    unclear = [place in hidden for place in range(len(shared))]
    if ranks is not None:
        flags = torch.tensor([reached, covered, unclear], dtype=torch.int32, device=shared[0].device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=ranks)
        reached, covered, unclear = flags.bool().tolist()
    places = [place for place, (here, lower) in enumerate(zip(reached, covered, strict=True)) if here and not lower]
    if any(unclear[place] for place in places):
        raise HiddenLayersError(
            f"torch.compile hides which shared layer is the last: {sum(unclear)} shared weight matrices enter compiled "
            "graphs together"
        )
    if any(reached) and not places:
        raise NoLastLayerError("no shared layer is the last: each shared parameter stands below another weight matrix")
    return [shared[place] for place in places]


def refuse_what_goes_past(
    losses: Iterable[Tensor],
    shared: Sequence[Parameter],
    layer: Sequence[Parameter],
    ranks: dist.ProcessGroup | None = None,
) -> None:
    """Refuse a layer if a path from a loss to another shared parameter goes past it; a walk through the graph.

    Gradients of the layer then say nothing of what comes down that path. So it is with MMoE, whose gates read the
    embeddings, with PLE, where each task reads experts of its own beside the shared ones at the top, and with residual
    connections. A custom function, or an operation that takes in two things beside the layer's weights, may pass one of
    them on, and counts as a path.

    Args:
        losses: those that are present.
        shared: the parameters that tasks share.
        layer: some of these. Its vectors (biases, scales) stop no path, unless it has no matrix.
        ranks: those that train together; a path on one of them counts for all.

    Raises:
        HiddenLayersError: a matrix of the layer enters a compiled graph, which does not say what goes past it.
        NoLastLayerError: a path goes past the layer.
    """
    stopping = [p for p in layer if _is_matrix(p)] or list(layer)
    others = {id(p) for p in shared} - {id(p) for p in layer}
    roots = [get_gradient_edge(loss).node for loss in losses]
    nodes = losses_first(roots)
    made_of = _made_of_parameters(nodes, {id(p): place for place, p in enumerate(stopping)})
    on_a_path, past, hidden = set(roots), False, False
    for node in nodes:
        if node not in on_a_path:
            continue
        past = past or id(getattr(node, "variable", None)) in others
        following = [after for after, _ in node.next_functions if after is not None]
        if node not in made_of and any(made_of.get(after) for after in following):  # an operation with the layer
            following = [after for after in following if after not in made_of]
            if kind_of(node) == "CompiledFunction":
                hidden = hidden or bool(following)
            if len(following) < 2 and not isinstance(node, BackwardCFunction):
                following = []
        on_a_path.update(following)
    if ranks is not None:
        flags = torch.tensor([past, hidden], dtype=torch.int32, device=shared[0].device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=ranks)
        past, hidden = flags.bool().tolist()
    if others and hidden:
        raise HiddenLayersError("torch.compile hides whether paths from the losses go past the last shared layer")
    if past:
        raise NoLastLayerError("paths from the losses to other shared parameters go past the last shared layer")


def _is_matrix(p: Parameter) -> bool:
    return sum(size > 1 for size in p.shape) > 1


def _parameters_above(losses: Iterable[Tensor], shared: Sequence[Parameter]) -> tuple[dict[int, set[int]], set[int]]:
    """Return the shared parameters above each one that is reached, by their places in ``shared``, and hidden ones.

    Parameters of one operation stand above each other, and above themselves. Hidden are weight matrices that enter a
    compiled graph together with others.
    """
    place_of = {id(p): place for place, p in enumerate(shared)}
    nodes = losses_first([get_gradient_edge(loss).node for loss in losses])
    made_of = _made_of_parameters(nodes, place_of)
    above: dict[int, set[int]] = {}
    arrived: dict[Node, set[int]] = {node: set() for node in nodes}
    hidden: set[int] = set()
    for node in nodes:
        given = [following for following, _ in node.next_functions if following is not None]
        leaf = getattr(node, "variable", None)
        if id(leaf) in place_of:
            above[place_of[id(leaf)]] = arrived[node]
        own: set[int] = set()
        if node not in made_of:
            own.update(*(made_of[parameters] for parameters in given if parameters in made_of))
            matrices = {place for place in own if _is_matrix(shared[place])}
            if kind_of(node) == "CompiledFunction" and len(matrices) > 1:
                hidden |= matrices
        for following in given:
            arrived[following] |= arrived[node] | own
    return above, hidden


def _made_of_parameters(nodes: Reversible[Node], place_of: dict[int, int]) -> dict[Node, set[int]]:
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
