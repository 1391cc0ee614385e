"""Reachability: the leaf tensors that each task's loss reaches in the autograd graph, without a backward pass.

The tasks travel together through the graph as the bits of a number, so that the walk takes one visit per node. Where a
loss takes a slice of a tensor (``logits[:, task]``), only that slice counts as reached: towers that are stacked into
one tensor stay apart.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

__all__ = [
    "Leaf", "Reach", "inputs_of", "is_copying", "is_elementwise", "kind_of", "leaves_reached", "losses_first",
    "reach_of", "shared_leaves",
]  # fmt: skip

_LARGEST_MASK = 2**24  # elements; of a larger tensor, all counts as reached once a slice is
_NARROWING = {"Select", "Slice", "Unbind", "Split", "SplitWithSizes", "UnsafeSplit", "Diagonal"}
_MOVING = _NARROWING | {
    "Alias", "Cat", "CopySlices", "Expand", "Mean", "Permute", "ReshapeAlias", "Squeeze", "Stack", "Sum", "T",
    "Transpose", "UnsafeView", "Unsqueeze", "View",
}  # fmt: skip
_ELEMENTWISE = {
    "Abs", "Add", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "Clamp", "ClampMax", "ClampMin", "Clone", "Div",
    "Elu", "Exp", "Gelu", "LeakyRelu", "Log", "LogSigmoid", "MseLoss", "Mul", "NanToNum", "NativeDropout", "Neg", "Pow",
    "Relu", "Rsub", "Sigmoid", "Silu", "SmoothL1Loss", "Softplus", "Sqrt", "Sub", "Tanh", "ToCopy", "Where",
}  # fmt: skip
_BY_MATRIX = {"Bmm", "Baddbmm"}
_COPYING = {"BackwardHookFunction", "RegisterPostBackwardFunction", "_DDPSink"}  # output k is input k
_NOTHING = torch.zeros((), dtype=torch.bool, device="cpu")
_CHECKPOINT = (
    "activation checkpointing of the reentrant kind hides the parameters behind it. Pass use_reentrant=False to "
    "torch.utils.checkpoint (Hugging Face: gradient_checkpointing_kwargs={'use_reentrant': False})."
)
_COMPILED = (
    "a compiled graph gives several tasks their own outputs, and does not say which of its inputs each depends on. Ask "
    "the same model before torch.compile."
)
_CUSTOM = (
    "the custom autograd function {} gives several tasks their own outputs, and does not say which of its inputs each "
    "depends on. Split it into one function per task."
)

_Edge = tuple[Node | None, int]


@dataclass(frozen=True)
class Leaf:
    """A leaf tensor that requires a gradient, mostly a parameter, and the tasks whose losses reach it.

    Attributes:
        tensor: the leaf.
        tasks: the tasks, task m as bit ``1 << m``.
        shared: at least two tasks reach the same element; False where each has a slice of its own.
    """

    tensor: Tensor
    tasks: int
    shared: bool


@dataclass(frozen=True)
class Reach:
    """The leaves and nodes that the losses of several tasks reach.

    Attributes:
        leaves: the leaf tensors that some loss reaches.
        nodes: each node of the graph, losses first: number of an output -> tasks that reach it, task m as bit
            ``1 << m``; empty for a node that no loss reaches.
        rows: for each crossing of a fork with stacked copies, the tasks that reach each row; without the crossings at
            which they cannot be told apart.
        mixing: the operations that may have mixed rows above those, such as "NativeLayerNorm".
        unseen: descriptions of parts that the walk cannot look into; unless empty, the result is incomplete.
    """

    leaves: list[Leaf]
    nodes: dict[Node, dict[int, int]]
    rows: dict[Node, list[int]]
    mixing: list[str]
    unseen: list[str]


def reach_of(losses: Sequence[Tensor | None], *, stop_at: Callable[[Node], bool] = lambda _: False) -> Reach:
    """Walk the graph from the losses to the leaves, without a backward pass and without freeing anything.

    :attr:`Reach.unseen` describes what the walk cannot see: parameters behind reentrant checkpoints, and the inputs
    that each task reaches of a compiled graph or of a custom function with several outputs. Tensors that a custom
    function uses without taking them as inputs are missed silently.

    Args:
        losses: one scalar per task; a task that is None, or whose loss requires no gradient, reaches nothing.
        stop_at: nodes that losses reach, but do not cross.

    Raises:
        TypeError: ``losses`` is one tensor, or an entry is neither a tensor nor None.
    """
    if isinstance(losses, Tensor):
        raise TypeError(
            f"Expected a list with one scalar loss per task, found one tensor of shape {tuple(losses.shape)}. Pass "
            "list(losses)."
        )
    walk = _Walk()
    roots = []
    for task, loss in enumerate(losses):
        if loss is not None and not isinstance(loss, Tensor):
            raise TypeError(f"The loss of task {task} must be a tensor, or None; found {type(loss).__name__}.")
        if loss is not None and loss.requires_grad:
            edge = get_gradient_edge(loss)
            roots.append(edge.node)
            walk.follow((edge.node, edge.output_nr), 1 << task, None)
    leaves: list[Leaf] = []
    nodes: dict[Node, dict[int, int]] = {}
    rows: dict[Node, list[int]] = {}
    for node in losses_first(roots):
        arrived = walk.arrivals.pop(node, {})
        nodes[node] = {output: arrival.tasks for output, arrival in arrived.items()}
        if arrived and _stacked(node) and not (walk.mixing and any(map(_whole_for_several, arrived.values()))):
            rows[node] = _by_row(node, arrived)
        leaf = getattr(node, "variable", None)
        if leaf is not None and arrived:
            leaves.append(Leaf(leaf, nodes[node][0], _overlap(arrived[0])))
        elif not stop_at(node):
            walk.pass_on(node, arrived)
    return Reach(leaves, nodes, rows, list(walk.mixing), list(walk.unseen))


def inputs_of(node: Node, output: int, /) -> list[tuple[Node, int]]:
    """Return the inputs of a node that its given output may depend on, each as a node and the number of its output."""
    source = _source(node, kind_of(node)) if isinstance(node, BackwardCFunction) else None
    edges = node.next_functions if source is None else [node.next_functions[source(output)]]
    return [(given, place) for given, place in edges if given is not None]


def kind_of(node: Node, /) -> str:
    """Return the name of a node's operation, such as "Addmm"."""
    return re.sub(r"^torch::autograd::|Backwards?\d*$", "", node.name())


def is_copying(node: Node, /) -> bool:
    """Return whether a node hands each input on as the output of the same number, as a wrapper around a model does."""
    return kind_of(node) in _COPYING


def is_elementwise(node: Node, /) -> bool:
    """Return whether a node moves elements of its inputs or combines them one by one."""
    return kind_of(node) in _MOVING | _ELEMENTWISE


def leaves_reached(losses: Sequence[Tensor | None]) -> list[list[Tensor]]:
    """Return the leaf tensors that each loss reaches, mostly parameters; no backward pass, nothing is freed.

    Args:
        losses: one scalar per task; None reaches nothing.

    Raises:
        TypeError: an entry is neither a tensor nor None.
        RuntimeError: the graph hides parameters: reentrant checkpoints, or a compiled graph that several tasks share.

    Example:
        >>> a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> [len(leaves) for leaves in leaves_reached([a.sum(), (a * b).sum()])]
        [1, 2]
    """
    found = _seen(losses)
    return [[leaf.tensor for leaf in found.leaves if leaf.tasks >> task & 1] for task in range(len(losses))]


def shared_leaves(losses: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the leaf tensors with an element that at least two of the losses reach; see :func:`leaves_reached`.

    A parameter that holds a slice per task (batched towers, a learned weight per loss) is not shared.
    """
    return [leaf.tensor for leaf in _seen(losses).leaves if leaf.shared]


def _seen(losses: Sequence[Tensor | None]) -> Reach:
    found = reach_of(losses)
    if found.unseen:
        raise RuntimeError(f"Cannot tell which parameters the tasks share: {'; '.join(found.unseen)}")
    return found


@dataclass
class _Arrival:
    """The tasks at one output of a node: those that reach all of it, and masks of what the others reach."""

    whole: int = 0
    parts: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tasks(self) -> int:
        """The tasks that reach anything of it."""
        found = self.whole
        for tasks in self.parts:
            found |= tasks
        return found


def _overlap(arrival: _Arrival) -> bool:
    """Return whether two tasks reach the same element."""
    if not arrival.parts:
        return arrival.whole.bit_count() > 1
    times: Tensor | int = 0
    for tasks, masks in _groups({0: arrival}):
        mask = masks[0]
        times = times + tasks.bit_count() * (1 if mask is None else mask.to(torch.int32))
    return bool(torch.as_tensor(times).max() > 1)


def _whole_for_several(arrival: _Arrival) -> bool:
    return arrival.whole.bit_count() > 1


def _by_row(node: Any, arrived: dict[int, _Arrival]) -> list[int]:
    """Return the tasks that reach each row of the stacked copies of a fork."""
    found = [functools.reduce(int.__or__, (arrival.whole for arrival in arrived.values()))] * len(node.fork.tasks)
    for arrival in arrived.values():
        for tasks, mask in arrival.parts.items():
            for row in mask.reshape(len(found), -1).any(1).nonzero().flatten().tolist():
                found[row] |= tasks
    return found


def losses_first(roots: Iterable[Node]) -> dict[Node, Sequence[_Edge]]:
    """Return every node at or below the roots, after all nodes that lead to it, each with its inputs."""
    finished: list[tuple[Node, Sequence[_Edge]]] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, Sequence[_Edge] | None]] = [(root, None) for root in roots]
    while stack:
        node, inputs = stack.pop()
        if inputs is not None:
            finished.append((node, inputs))
        elif node not in seen:
            seen.add(node)
            inputs = node.next_functions
            stack.append((node, inputs))
            stack += [(following, None) for following, _ in inputs if following is not None]
    return dict(reversed(finished))


class _Walk:
    """The walk through the graph: the tasks that have arrived at nodes not visited yet."""

    def __init__(self) -> None:
        self.arrivals: dict[Node, dict[int, _Arrival]] = {}
        self.unseen: dict[str, None] = {}
        self.mixing: dict[str, None] = {}

    def follow(self, edge: _Edge, tasks: int, mask: Tensor | None) -> None:
        """Let ``tasks`` arrive at the other end of ``edge``, or at the part of it where ``mask`` holds."""
        node, output = edge
        if node is None or not tasks or (mask is not None and not bool(mask.any())):
            return
        arrival = self.arrivals.setdefault(node, {}).setdefault(output, _Arrival())
        if mask is None or bool(mask.all()):
            arrival.whole |= tasks
        else:
            known = arrival.parts.get(tasks)
            arrival.parts[tasks] = mask if known is None else known | mask

    def pass_on(self, node: Node, arrived: dict[int, _Arrival]) -> None:
        """Let the tasks at the outputs of ``node`` reach its inputs."""
        kind = kind_of(node)
        if not isinstance(node, BackwardCFunction):
            for tasks, masks in _groups(arrived):
                partial = _reach_a_part(node, kind, masks)
                for edge, mask in zip(node.next_functions, _masks_of_inputs(node, kind, masks), strict=True):
                    if partial and mask is None and edge[0] is not None:
                        self.mixing[kind] = None
                    self.follow(edge, tasks, mask)
        elif (source := _source(node, kind)) is not None:
            for output, arrival in arrived.items():
                edge = node.next_functions[source(output)]
                self.follow(edge, arrival.whole, None)
                for tasks, part in arrival.parts.items():
                    self.follow(edge, tasks, part.any(0) if _stacked(node) else part)
        else:
            self._through_custom(node, kind, [arrival.tasks for arrival in arrived.values()])

    def _through_custom(self, node: Node, kind: str, arrived: Sequence[int]) -> None:
        """Let all tasks reach all inputs: any output may depend on any input."""
        tasks = functools.reduce(int.__or__, arrived, 0)
        for edge in node.next_functions:
            self.follow(edge, tasks, None)
        if kind == "CheckpointFunction":
            self.unseen[_CHECKPOINT] = None
        elif len(node.next_functions) > 1 and len(set(arrived)) > 1:
            self.unseen[_COMPILED if kind == "CompiledFunction" else _CUSTOM.format(kind)] = None


def _stacked(node: Any) -> bool:
    """Return whether a node is a fork that hands on the copies of all tasks as one tensor."""
    return kind_of(node) == "Meeting" and bool(node.stacked)


def _source(node: Any, kind: str) -> Callable[[int], int] | None:
    """Return the input that each output of a custom function copies; None if any may depend on any input."""
    if kind == "Meeting":  # a fork: one copy of every piece per task, or one of all tasks
        return lambda output: output % int(node.pieces)
    return (lambda output: output) if is_copying(node) else None


def _outputs(node: Any) -> int:
    return len(getattr(node, "_input_metadata", "1"))


def _reach_a_part(node: Node, kind: str, masks: dict[int, Tensor | None]) -> bool:
    """Return whether tasks that reach ``masks`` of a node's outputs may reach a part of its inputs alone."""
    partial = len(masks) < _outputs(node) or any(mask is not None for mask in masks.values())
    return partial or (kind in _NARROWING and _outputs(node) == 1)


def _masks_of_inputs(node: Node, kind: str, masks: dict[int, Tensor | None]) -> Sequence[Tensor | None]:
    """Return masks of a node's inputs that tasks reach if they reach ``masks`` of its outputs; None: all of it."""
    edges = node.next_functions
    if kind in _MOVING and _reach_a_part(node, kind, masks):
        return _moved(node, [masks.get(output, _NOTHING) for output in range(_outputs(node))])
    mask = masks.get(0)
    if mask is not None and kind in _ELEMENTWISE:
        return [_reduced(mask, edge) for edge in edges]
    if mask is not None and kind in _BY_MATRIX:
        return [_matrices(mask, edge) for edge in edges]
    return [None] * len(edges)


def _groups(arrived: dict[int, _Arrival]) -> list[tuple[int, dict[int, Tensor | None]]]:
    """Group the tasks that reach the same parts of a node's outputs, with a mask per output; None: all of it."""
    groups: dict[tuple[tuple[int, ...], ...], int] = {}
    tasks = 0
    for arrival in arrived.values():
        tasks |= arrival.tasks
    while tasks:
        task = tasks & -tasks
        tasks ^= task
        alike = tuple(
            (output, -1) if arrival.whole & task else (output, *(part for part in arrival.parts if part & task))
            for output, arrival in arrived.items()
            if arrival.tasks & task
        )
        groups[alike] = groups.get(alike, 0) | task
    found = []
    for together in groups.values():
        masks: dict[int, Tensor | None] = {}
        for output, arrival in arrived.items():
            parts = [mask for part, mask in arrival.parts.items() if part & together]
            if arrival.whole & together:
                masks[output] = None
            elif parts:
                masks[output] = functools.reduce(torch.logical_or, parts)
        found.append((together, masks))
    return found


@torch.no_grad()
def _moved(node: Any, masks: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return masks of the inputs of a node that moves, copies or adds elements, found by its backward pass."""
    edges = node.next_functions
    inputs = [edge[0]._input_metadata[edge[1]] for edge in edges if edge[0] is not None]
    if any(given.is_nested_tensor or math.prod(given.shape) > _LARGEST_MASK for given in inputs):
        return [None] * len(edges)
    gradients = []
    for mask, metadata in zip(masks, node._input_metadata, strict=True):
        like = torch.zeros(metadata.shape, dtype=metadata.dtype, device=metadata.device)
        gradients.append(like + 1 if mask is None else like if mask is _NOTHING else mask.to(like.dtype))
    given = node(*gradients)
    found = given if isinstance(given, tuple) else (given,)
    return [_NOTHING if mask is None else mask != 0 for mask in found]


def _reduced(mask: Tensor, edge: _Edge) -> Tensor | None:
    """Return the mask of an input of an elementwise operation, which may have been broadcast."""
    if edge[0] is None:
        return None
    shape = _shape(edge)
    missing = mask.dim() - len(shape)
    if missing < 0 or any(own not in {1, other} for own, other in zip(shape, mask.shape[missing:], strict=True)):
        return None
    return mask.to(torch.float32).sum_to_size(shape) != 0


def _matrices(mask: Tensor, edge: _Edge) -> Tensor | None:
    """Return the mask of an input of a batched matrix product: the matrices whose product is reached."""
    if edge[0] is None:
        return None
    shape = _shape(edge)
    if len(shape) != 3 or shape[0] != len(mask):
        return None
    return mask.any(2).any(1).view(-1, 1, 1).expand(shape)


def _shape(edge: _Edge) -> tuple[int, ...]:
    node: Any = edge[0]
    return tuple(node._input_metadata[edge[1]].shape)
