"""Structures that may cross a fork: tuples, lists, dicts and packed sequences of tensors and plain values."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

__all__ = ["differentiable_parts", "tasks_first"]

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, slice, range,
    torch.device, torch.dtype, torch.Generator, torch.layout, torch.memory_format, torch.Size,
)  # fmt: skip


def differentiable_parts(shared: Any) -> tuple[list[Tensor], Callable[..., Any]]:
    """Return the tensors of a structure that need a gradient, and a function that replaces them.

    That function takes their replacements, and a function of all other values of the structure; without it they are
    passed on unchanged.

    Raises:
        TypeError: there is no tensor, a complex one that needs a gradient, or an object that might hide tensors.
    """
    if isinstance(shared, Tensor):  # the common case, which needs no look at a structure
        _refuse_complex(shared)
        return ([shared] if shared.requires_grad else []), lambda parts, _=None: parts[0]
    leaves, form = pytree.tree_flatten(shared, is_leaf=lambda node: isinstance(node, PackedSequence))
    values = [leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in leaves]
    if not any(isinstance(value, Tensor) for value in values):
        found = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise TypeError(f"A fork takes a tensor, or a tuple, list or dict of tensors; found {found}.")
    for value in values:
        if not isinstance(value, (Tensor, *_PLAIN)):
            raise TypeError(
                f"A fork takes tensors in tuples, lists and dicts, beside plain values; found {type(value).__name__}, "
                "of which it cannot say whether tensors in it need a gradient. Hand its tensors over, or register the "
                "class with torch.utils._pytree.register_pytree_node."
            )
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    for place in places:
        _refuse_complex(values[place])

    def rebuilt(parts: Sequence[Tensor], others: Callable[[Any], Any] | None = None) -> Any:
        branch = list(leaves if others is None else map(others, leaves))
        for place, part in zip(places, parts, strict=True):
            leaf = branch[place]
            branch[place] = _packed_as(leaf, part) if isinstance(leaf, PackedSequence) else part
        return pytree.tree_unflatten(branch, form)

    return [values[place] for place in places], rebuilt


def tasks_first(shared: Any, tasks: int) -> Any:
    """Return a structure whose tensors have a first dimension of ``tasks``, without a copy; other values as they are.

    Raises:
        TypeError: there is a ``PackedSequence`` in it.
    """

    def expanded(leaf: Any) -> Any:
        if isinstance(leaf, _PLAIN):
            return leaf
        if isinstance(leaf, PackedSequence):
            raise TypeError(
                "A PackedSequence has no place for a dimension of tasks. Call the fork itself, which returns one per "
                "task: fork(shared)."
            )
        # A tensor, or a proxy of one, with which torch.fx traces.
        return leaf.expand(torch.Size((tasks,)) + leaf.shape)

    if isinstance(shared, Tensor):
        return expanded(shared)
    return pytree.tree_map(expanded, shared, is_leaf=lambda node: isinstance(node, PackedSequence))


def _packed_as(like: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def _refuse_complex(tensor: Tensor) -> None:
    if tensor.requires_grad and tensor.is_complex():
        raise TypeError("A fork takes real tensors, found a complex one; fork torch.view_as_real of it.")
