"""Detection of per-sample gradients, which differentially private training clips one by one (DP-SGD, as in Opacus).

DP-SGD bounds what one example can change by clipping its gradient. That bound holds only if an example's gradient
depends on no other example. Weights computed from a whole batch break it; ``docs/privacy.md`` says more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["computed_per_sample", "have_per_sample_gradients", "per_sample_gradients_possible"]

_MARK = "grad_sample"  # the attribute that Opacus gives every trainable parameter, in each of its modes
_EXPANDED = "PerSampleGrad"


def per_sample_gradients_possible() -> bool:
    """Return whether this process has imported Opacus: without it there is nothing to look for."""
    return "opacus" in sys.modules


def have_per_sample_gradients(parameters: Iterable[Tensor], /) -> bool:
    """Return whether any of the parameters belongs to a model that Opacus has wrapped.

    Example:
        >>> import torch
        >>> have_per_sample_gradients(torch.nn.Linear(2, 1).parameters())
        False
    """
    return any(hasattr(parameter, _MARK) for parameter in parameters)


def computed_per_sample(tensors: Iterable[Tensor], /) -> bool:
    """Return whether tensors were computed by a model that Opacus has wrapped, from their autograd graph.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> computed_per_sample([layer(torch.ones(3, 2)).relu()])
        False
    """
    seen: set[Node] = set()
    waiting: list[Node | None] = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        # expanded weights (`grad_sample_mode="ew"`) hide the parameters behind functions of their own
        if (isinstance(leaf, Tensor) and hasattr(leaf, _MARK)) or _EXPANDED in node.name():
            return True
        waiting.extend(following for following, _ in node.next_functions)
    return False
