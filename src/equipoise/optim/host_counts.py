"""Step counts that lie on the device (``fused=True``), known on the host without asking the device in every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["HostCounts"]


class HostCounts:
    """What step counts stand at: read once from the device, then kept by counting along.

    A count that somebody else has changed meanwhile, which its version tells, or one that was loaded, is read again:
    one wait for all of them.
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
        """Note that one has just been added to these counts, or to these entries of each."""
        for count in counts:
            if id(count) in self._known and self._known[id(count)][0] is count:
                numbers = self._known[id(count)][2]
                moved = [number + 1 if rows is None or row in rows else number for row, number in enumerate(numbers)]
                self._known[id(count)] = (count, count._version, moved)

    def known(self, counts: Iterable[Tensor]) -> list[Tensor]:
        """Return those whose numbers are known: :meth:`counted` may be told of them."""
        return [count for count in counts if self._is_known(count)]

    def _is_known(self, count: Tensor) -> bool:
        found = self._known.get(id(count))
        return found is not None and found[0] is count and found[1] == count._version
