"""The order of a stream: which rows of which row groups are read, shuffled and cut into batches, by arithmetic alone.

One epoch is a sequence of row groups, permuted by the generator. A shard reads a range of whole batches of that
sequence; its row groups are mixed :data:`WINDOW` at a time. Everything follows from the counts in the manifest, so a
resumed stream finds its place without reading what lies before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

__all__ = ["WINDOW", "Epoch", "Piece", "Window"]

WINDOW: Final = 16
"""Row groups whose rows are mixed with each other."""

_SEEDS: Final = 2**62


@dataclass(frozen=True)
class Piece:
    """The rows from ``start`` to ``stop`` of one row group."""

    group: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Pieces that are in memory together.

    Attributes:
        start: the place of its first row in the shard.
        seed: of the permutation of its rows; None: they stay in order.
    """

    pieces: Sequence[Piece]
    start: int
    seed: int | None

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def order(self) -> Tensor | None:
        """Return the permutation of the window's rows, int64; None if they stay in order."""
        if self.seed is None:
            return None
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True)
class Epoch:
    """The order of one pass over a split.

    Attributes:
        sizes: rows of each row group.
        batch_size: rows of a batch.
        groups: the order of the row groups.
        seed: what the permutations inside windows are made from; None: nothing is shuffled.
        drop_last: leave out the rows at the end that fill no batch of every rank.

    Example:
        >>> epoch = Epoch.of([4, 4, 2], batch_size=2, generator=torch.Generator().manual_seed(0), drop_last=True)
        >>> epoch.batches(rank=0, world=2), epoch.batches(rank=1, world=2)
        (2, 2)
    """

    sizes: Sequence[int]
    batch_size: int
    groups: Sequence[int]
    seed: int | None
    drop_last: bool

    @classmethod
    def of(cls, sizes: Sequence[int], *, batch_size: int, generator: torch.Generator | None, drop_last: bool) -> Epoch:
        """Draw the order of one epoch; without a generator the rows stay as they are stored."""
        if generator is None:
            return cls(sizes, batch_size, range(len(sizes)), None, drop_last)
        groups = torch.randperm(len(sizes), generator=generator).tolist()
        seed = int(torch.randint(_SEEDS, (), generator=generator))
        return cls(sizes, batch_size, groups, seed, drop_last)

    def batches(self, *, rank: int = 0, world: int = 1, worker: int = 0, workers: int = 1) -> int:
        """Return how many batches a rank's worker yields."""
        first, end = self._of_rank(rank, world)
        return (end - first - worker + workers - 1) // workers

    def windows(self, *, rank: int = 0, world: int = 1, worker: int = 0, workers: int = 1) -> list[Window]:
        """Return what a rank's worker reads, in order; the shards of an epoch hold each row once."""
        first, _ = self._of_rank(rank, world)
        first += sum(self.batches(rank=rank, world=world, worker=w, workers=workers) for w in range(worker))
        last = first + self.batches(rank=rank, world=world, worker=worker, workers=workers)
        pieces = self._pieces(first * self.batch_size, last * self.batch_size)
        size = 1 if self.seed is None else WINDOW
        found, start = [], 0
        for i in range(0, len(pieces), size):
            # windows of other shards begin elsewhere in the epoch, so each has a seed of its own
            seed = None if self.seed is None else (self.seed + first * self.batch_size + start) % _SEEDS
            found.append(Window(pieces[i : i + size], start, seed))
            start += len(found[-1])
        return found

    def _of_rank(self, rank: int, world: int) -> tuple[int, int]:
        """Return a rank's first batch and the one after its last."""
        rows = sum(self.sizes)
        if self.drop_last:
            each = rows // (world * self.batch_size)
            return rank * each, (rank + 1) * each
        every = -(-rows // self.batch_size)
        return rank * every // world, (rank + 1) * every // world

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        """Return the rows between two places of the epoch's sequence of row groups."""
        ends = accumulate(self.sizes[group] for group in self.groups)
        found = []
        for group, end in zip(self.groups, ends, strict=True):
            begin = end - self.sizes[group]
            piece = Piece(group, max(start - begin, 0), min(stop - begin, self.sizes[group]))
            if piece.start < piece.stop:
                found.append(piece)
        return found
