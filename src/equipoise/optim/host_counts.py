"""Host copies of step counts on the device (``fused=True``), kept without a host sync in each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["HostCounts"]


class HostCounts:
    """Values of step counts: read once from the device, then counted on the host.

    A count that was loaded, or that other code has changed (its version tells), is read again: one host sync for all.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, list[float]]] = {}

    def read(self, counts: Sequence[Tensor]) -> list[list[float]]:
        """Return the numbers in each count."""
        stale = [count for count in counts if not self._is_known(count)]
        if stale:
            numbers: list[float] = torch.cat([count.reshape(-1).double() for count in stale]).tolist()
            for count in stale:
                own, numbers = numbers[: count.numel()], numbers[count.numel() :]
                self._known[id(count)] = (count, count._version, own)
        return [self._known[id(count)][2] for count in counts]

    def counted(self, counts: Iterable[Tensor], rows: Sequence[int] | None = None) -> None:
        """Note that 1 was added to these counts, or to these entries of each."""
        for count in counts:
            if id(count) in self._known and self._known[id(count)][0] is count:
                numbers = self._known[id(count)][2]
                moved = [number + 1 if rows is None or row in rows else number for row, number in enumerate(numbers)]
                self._known[id(count)] = (count, count._version, moved)

    def known(self, counts: Iterable[Tensor]) -> list[Tensor]:
        """Return the counts whose numbers are known, for :meth:`counted`."""
        return [count for count in counts if self._is_known(count)]

    def _is_known(self, count: Tensor) -> bool:
        found = self._known.get(id(count))
        return found is not None and found[0] is count and found[1] == count._version
