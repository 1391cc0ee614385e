"""Whether a training gives the same numbers when it is run again, and if not, why."""

from __future__ import annotations

import torch

__all__ = ["why_irreproducible"]


def why_irreproducible(device: torch.device, /) -> str:
    """What makes a second run with the same seed on the same machine end in other last digits; "" if nothing does.

    On a CPU nothing does: initial weights, batches and evaluation rows come from the seed, and PyTorch's kernels add in
    a fixed order for a given number of threads and ranks.

    Example:
        >>> why_irreproducible(torch.device("cpu"))
        ''
    """
    if device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
        return ""
    return (
        f"on {device.type} PyTorch adds up gradients of embedding tables in no fixed order; call "
        "torch.use_deterministic_algorithms(True) before training to have it fixed, at some cost"
    )
