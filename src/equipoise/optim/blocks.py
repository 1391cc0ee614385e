"""Treats many parameters as a few matrices that fit the cache: rows are tasks, columns elements of parameters.

Update rules work element by element, so many small parameters can be treated as one, and a large one in
parts: few operations for a model of many biases, and little memory traffic for an embedding table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.optim.rules import Count, Options

__all__ = ["Block", "blocks"]

_ELEMENTS_ON_CPU = 1 << 17  # 0.5 MB in float32: a handful of such matrices stays in the second level cache
_ELEMENTS_ON_ACCELERATOR = 1 << 24  # launches cost more than memory traffic there


@dataclass(frozen=True)
class Block:
    """Stretches of parameters with equal options and counts, side by side."""

    options: Options
    count: Count
    pieces: list[tuple[int, int, int]]
    """Number of the parameter, its first element in the block, and the end."""

    def take(self, matrices: Sequence[Tensor]) -> Tensor:
        """Return the block's columns of matrices that are as wide as the parameters, one matrix per parameter."""
        parts = [_columns(matrices[number], start, end) for number, start, end in self.pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def pair(self, columns: Tensor, matrices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each part of ``columns``, a matrix of this block, with its place in ``matrices``."""
        offset = 0
        for number, start, end in self.pieces:
            yield _columns(columns, offset, offset + end - start), _columns(matrices[number], start, end)
            offset += end - start


def blocks(places: Sequence[tuple[Options, Count, int]], rows: int, device: torch.device) -> Iterator[Block]:
    """Yield blocks of ``rows`` rows over parameters, given by options, count of the step and number of elements."""
    width = max((_ELEMENTS_ON_CPU if device.type == "cpu" else _ELEMENTS_ON_ACCELERATOR) // rows, 1)
    block: Block | None = None
    room = 0
    for number, (options, count, size) in enumerate(places):
        start = 0
        while start < size:
            if block is None or room == 0 or options is not block.options or not _equal(count, block.count):
                if block is not None:
                    yield block
                block, room = Block(options, count, []), width
            end = min(size, start + room)
            block.pieces.append((number, start, end))
            room -= end - start
            start = end
    if block is not None:
        yield block


def _equal(one: Count, other: Count) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return one == other


def _columns(matrix: Tensor, start: int, end: int) -> Tensor:
    """Return a view of some columns, or the matrix itself for all: a view would cost as much as the arithmetic."""
    return matrix if end - start == matrix.shape[1] else matrix[:, start:end]
