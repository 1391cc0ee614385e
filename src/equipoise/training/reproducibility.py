"""Whether a training gives the same numbers when it is run again, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["random_states", "restore_random_states", "why_irreproducible"]


def random_states(device: torch.device, /) -> list[Tensor]:
    """What random draws, as those of dropout, depend on: the state of the CPU's generator, and of the device's own."""
    found = [torch.get_rng_state()]
    return [*found, torch.cuda.get_rng_state(device)] if device.type == "cuda" else found


def restore_random_states(states: Sequence[Tensor], device: torch.device, /) -> None:
    """Back to what :func:`random_states` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


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
