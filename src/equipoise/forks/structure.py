"""Structures that may cross a fork: tuples, lists, dicts and packed sequences of tensors and plain values."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

__all__ = ["differentiable_parts"]

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, slice, range,
    torch.device, torch.dtype, torch.Generator, torch.layout, torch.memory_format, torch.Size,
)  # fmt: skip


def differentiable_parts(shared: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """Return the tensors of a structure that need a gradient, and a function that replaces them.

    All other values of the structure are passed on unchanged.

    Raises:
        TypeError: there is no tensor, a complex one that needs a gradient, or an object that might hide tensors.
    """
    if isinstance(shared, Tensor):  # the common case, which needs no look at a structure
        _refuse_complex(shared)
        return ([shared] if shared.requires_grad else []), lambda parts: parts[0]
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

    def rebuilt(parts: Sequence[Tensor]) -> Any:
        branch = list(leaves)
        for place, part in zip(places, parts, strict=True):
            leaf = branch[place]
            branch[place] = _packed_as(leaf, part) if isinstance(leaf, PackedSequence) else part
        return pytree.tree_unflatten(branch, form)

    return [values[place] for place in places], rebuilt


def _packed_as(like: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def _refuse_complex(tensor: Tensor) -> None:
    if tensor.requires_grad and tensor.is_complex():
        raise TypeError("A fork takes real tensors, found a complex one; fork torch.view_as_real of it.")
