"""A split of prepared data: read from disk while it is used, shuffled by windows, one window ahead in a thread."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from equipoise.data.ahead import ahead, batches_of_blocks, spans
from equipoise.data.dataset import Split
from equipoise.data.stream.layout import Extent, Layout
from equipoise.data.stream.manifest import Manifest
from equipoise.data.stream.order import Epoch, Piece, Window
from equipoise.schema import Batch, Schema

__all__ = ["StreamedSplit"]


class StreamedSplit:
    """N examples in the parts of a prepared folder, with what training and evaluation use of a :class:`Split`.

    Memory while batches are read: a window of 16 row groups, and the next one; a row group takes at most 16 MiB, so
    that is 512 MiB at most. Labels, weights and keys are read whole and kept when they are first asked for.
    A pickled one holds the manifest alone.

    Args:
        folder: the prepared folder.
        manifest: what :func:`read_manifest` found there.
        name: train, validation or test.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        self.folder, self.manifest, self.name = folder, manifest, name
        self._layout = Layout(manifest.about)
        self._groups = [
            (folder / part.file, group) for part in manifest.of_split(name) for group in range(len(part.groups))
        ]
        self.group_rows = [rows for part in manifest.of_split(name) for rows in part.groups]

    def __reduce__(self) -> tuple[type[Self], tuple[Path, Manifest, str]]:
        return type(self), (self.folder, self.manifest, self.name)

    def __len__(self) -> int:
        return sum(self.group_rows)

    def __repr__(self) -> str:
        return f"StreamedSplit({str(self.folder)!r}, {self.name!r}, rows={len(self)})"

    @property
    def nbytes(self) -> int:
        """The bytes that the columns would take in memory."""
        return len(self) * self._layout.row_bytes

    @cached_property
    def labels(self) -> Tensor:
        """All labels, float32, shape [N, tasks]."""
        return torch.stack([self._layout.column(column, self._all) for column in self._layout.labels], 1)

    @cached_property
    def weight(self) -> Tensor:
        """All weights, float32, shape [N]."""
        return self._layout.column(self._layout.weight[0], self._all)

    @cached_property
    def importance(self) -> Tensor | None:
        """All importances, float32, shape [N]; None: 1 each."""
        return self._layout.column(self._layout.importance[0], self._all) if self._layout.importance else None

    @cached_property
    def keys(self) -> Mapping[str, Tensor]:
        """All keys: name -> codes, int64, shape [N]."""
        return {name: self._layout.column(column, self._all) for name, column in self._layout.keys.items()}

    def to(self, device: torch.device | str) -> Self:
        """Return this split: its rows stay on disk, and the training loop copies each batch to its device."""
        return self

    def check(self, schema: Schema, /) -> None:
        """Refuse another schema; the values were checked when they were prepared.

        Raises:
            ValueError: the schema is not the one of the manifest.
        """
        if schema != self.manifest.about.columns:
            raise ValueError(f"expected the schema of {self.folder}, found another.")

    def add_to_hash(self, digest: hashlib._Hash, /) -> None:
        """Add the checksums of the parts to a hash."""
        digest.update(self.manifest.digest(self.name))

    def take(self, rows: Tensor | slice, /) -> Split:
        """Return some rows in memory, as a slice or by index; reads each row group that holds one of them."""
        wanted, order = torch.arange(len(self))[rows].sort()
        ends = torch.tensor(self.group_rows).cumsum(0)
        counts = torch.bucketize(wanted, ends, right=True).bincount(minlength=len(ends)).tolist()
        parts = [self._group(0).take(slice(0))]
        for group, index in enumerate(torch.split(wanted, counts)):
            if len(index):
                parts.append(self._group(group).take(index - (int(ends[group]) - self.group_rows[group])))
        return Split.joined(parts).take(order.argsort())

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None, skip: int = 0) -> Iterator[Batch]:
        """Yield batches of ``batch_size`` rows; a generator shuffles the rows, and a short last batch is then left out.

        The generator permutes the row groups; each 16 of them in that order are a window, whose rows are permuted. The
        next window is read in a thread, and the next batches are gathered in another one.

        Args:
            skip: how many batches to leave out at the beginning; windows before the first batch are not read.

        Raises:
            ValueError: ``batch_size`` is under 1, or a shuffled split holds fewer rows than one batch.
            DataError: a part was changed since its preparation.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}.")
        shuffled = generator is not None
        if shuffled and len(self) < batch_size:
            raise ValueError(
                f"A training split must hold at least one batch of {batch_size} rows, found {len(self)}: "
                "lower batch_size or load more rows."
            )
        epoch = Epoch.of(self.group_rows, batch_size=batch_size, generator=generator, drop_last=shuffled)
        yield from self.batches_of(epoch.windows(), batch_size, skip=skip)

    def batches_of(self, windows: Sequence[Window], batch_size: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of some windows in turn, without the first ``skip`` of them."""
        due = [window for window in windows if window.start + len(window) > skip * batch_size]
        blocks = ahead(self._gathering(due, batch_size, skip * batch_size))
        yield from batches_of_blocks(blocks, batch_size)

    def _gathering(self, windows: Sequence[Window], batch_size: int, start: int) -> Iterator[Callable[[], Batch]]:
        """Yield the calls that gather the rows of some windows from a place on, block by block."""
        for window, rows, order in ahead(partial(self._read, window) for window in windows):
            first, last = max(start, window.start), window.start + len(window)
            for begin, end in spans(first, last, batch_size, self._layout.row_bytes):
                of_window = slice(begin - window.start, end - window.start)
                yield partial(rows.gather, of_window if order is None else order[of_window])

    def _read(self, window: Window) -> tuple[Window, Split, Tensor | None]:
        """Return a window with its rows as they are stored, and their order."""
        return window, self._layout.rows([self._extent(piece) for piece in window.pieces]), window.order()

    def _group(self, group: int) -> Split:
        extent = self._extent(Piece(group, 0, self.group_rows[group]))
        rows = self._layout.rows([extent])
        keys = {name: self._layout.column(column, [extent]) for name, column in self._layout.keys.items()}
        return Split(rows.categorical, rows.numeric, rows.labels, rows.weight, rows.importance, keys)

    @property
    def _all(self) -> list[Extent]:
        return [self._extent(Piece(group, 0, rows)) for group, rows in enumerate(self.group_rows)]

    def _extent(self, piece: Piece) -> Extent:
        return Extent(*self._groups[piece.group], piece.start, piece.stop)
