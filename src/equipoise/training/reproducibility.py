"""The state of random generators, and the reasons why a second run may give other numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_random_state", "random_states", "restore_random_states", "why_irreproducible"]


def random_states(device: torch.device, /) -> list[Tensor]:
    """Return the state of the CPU's random generator and of the device's own, on which dropout depends."""
    found = [torch.get_rng_state()]
    return [*found, torch.cuda.get_rng_state(device)] if device.type == "cuda" else found


def restore_random_states(states: Sequence[Tensor], device: torch.device, /) -> None:
    """Restore the states that :func:`random_states` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def check_random_state(state: Tensor, device: torch.device, /) -> None:
    """Check that a generator on ``device`` takes the state.

    Raises:
        RuntimeError: it does not.
    """
    torch.Generator(device).set_state(state)


def why_irreproducible(device: torch.device, /) -> str:
    """Return why a second run with the same seed may end in other last digits on the same machine; "" if it does not.

    On a CPU it does not: initial weights, batches and evaluation rows come from the seed, and PyTorch's kernels add in
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
