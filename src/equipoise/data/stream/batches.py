"""A prepared split for a training loop of one's own: an iterable data set of batches, sharded and resumable."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from equipoise.data.stream.manifest import SplitName, read_manifest
from equipoise.data.stream.order import Epoch
from equipoise.data.stream.split import StreamedSplit
from equipoise.errors import DataError, SettingError
from equipoise.schema import Batch

__all__ = ["StreamedBatches"]

_SEED_STEP = 1_000_003  # between the epochs of one seed and those of the next, as in `equipoise train`


class StreamedBatches(IterableDataset[Batch]):
    """The batches of a prepared split, for one rank of several.

    Each epoch has an order of its own, decided by seed and epoch: the row groups are permuted, and each 16 of them in
    that order are a window, whose rows are permuted. Ranks, and the workers of a ``DataLoader``, read ranges of the
    permuted row groups that do not overlap.

    Args:
        folder: the prepared folder.
        batch_size: rows of a batch of this rank.
        split: train, validation or test.
        seed: of the order.
        shuffle: False: the rows stay in the order of the parts.
        drop_last: leave out the rows at the end that do not fill a batch of every rank, so that all ranks have as many
            batches. False: every row comes once; the last batch may be short, and ranks may differ by one batch.
        rank: which of the processes this is; as ``torch.distributed`` or torchrun says, if None.
        world: how many processes there are; likewise.

    Raises:
        DataError: see :func:`equipoise.data.from_prepared`; or the split holds fewer rows than a batch of each rank.
        SettingError: ``batch_size``, ``rank`` or ``world`` is out of range.

    Example:
        >>> stream = StreamedBatches("prepared", batch_size=4096)  # doctest: +SKIP
        >>> for epoch in range(2):  # doctest: +SKIP
        ...     stream.set_epoch(epoch)
        ...     for batch in torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2):
        ...         train_on(batch)
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        batch_size: int,
        split: SplitName = "train",
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__()
        folder = Path(folder).absolute()
        self.split = StreamedSplit(folder, read_manifest(folder), split)
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world = _process() if rank is None or world is None else (rank, world)
        if batch_size < 1:
            raise SettingError(f"batch_size must be at least 1, found {batch_size}.")
        if not 0 <= self.rank < self.world:
            raise SettingError(f"rank must be from 0 to {self.world - 1}, found {self.rank}.")
        if drop_last and len(self.split) < batch_size * self.world:
            raise DataError(
                f"A split must hold at least one batch of {batch_size} rows for each of {self.world} ranks, found "
                f"{len(self.split)}: lower batch_size or prepare more rows."
            )
        self._delivered = 0
        # Workers of a DataLoader have copies of this object, those that persist even across epochs: they share these.
        self._epoch, self._resumed_after, self._workers = (torch.zeros((), dtype=torch.int64) for _ in range(3))
        for number in (self._epoch, self._resumed_after, self._workers):
            number.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._order().batches(rank=self.rank, world=self.world)

    def set_epoch(self, epoch: int, /) -> None:
        """Choose the epoch whose order the next iteration follows."""
        if epoch != int(self._epoch):
            self._epoch.fill_(epoch)
            self._resumed_after.zero_()
            self._delivered = 0

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        done = int(self._resumed_after)
        if done and workers != max(1, int(self._workers)):
            raise SettingError(
                f"The stream was saved under {int(self._workers)} workers, found {info.num_workers if info else 0}: "
                "its order depends on their number."
            )
        self._workers.fill_(info.num_workers if info is not None else 0)
        self._delivered = done
        # A DataLoader asks its workers in turn, beginning with the first, so the first one goes on where it stopped.
        worker = (worker + done) % workers
        windows = self._order().windows(rank=self.rank, world=self.world, worker=worker, workers=workers)
        for batch in self.split.batches_of(windows, self.batch_size, skip=(done - worker + workers - 1) // workers):
            self._delivered += 1
            yield batch

    def state_dict(self, *, batches: int | None = None) -> dict[str, Any]:
        """Return the place in the stream.

        Args:
            batches: batches of this epoch that a ``DataLoader`` with workers has delivered; without workers the stream
                counts them.

        Raises:
            SettingError: the number is needed and missing.
        """
        if batches is None and int(self._workers):
            raise SettingError(
                "Workers read ahead, so the stream cannot know what they delivered: call state_dict(batches=...) with "
                "the number of batches of this epoch."
            )
        return {
            "epoch": int(self._epoch),
            "batches": self._delivered if batches is None else batches,
            "workers": int(self._workers),
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on at a place in the stream: the next iteration yields the batches that would have come next.

        Raises:
            SettingError: the state belongs to other data, or to other settings.
        """
        differing = [
            f"{name}: {state.get(name)!r} there, {value!r} here"
            for name, value in self._identity().items()
            if state.get(name) != value
        ]
        if differing:
            raise SettingError(f"The state belongs to another stream: {'; '.join(differing)}.")
        self._epoch.fill_(state["epoch"])
        self._resumed_after.fill_(state["batches"])
        self._workers.fill_(state["workers"])
        self._delivered = state["batches"]

    def _order(self) -> Epoch:
        generator = torch.Generator().manual_seed(self.seed * _SEED_STEP + int(self._epoch)) if self.shuffle else None
        return Epoch.of(
            self.split.group_rows, batch_size=self.batch_size, generator=generator, drop_last=self.drop_last
        )

    def _identity(self) -> dict[str, Any]:
        return {
            "data": self.split.manifest.digest(self.split.name).hex(), "split": self.split.name, "seed": self.seed,
            "batch_size": self.batch_size, "shuffle": self.shuffle, "drop_last": self.drop_last,
            "rank": self.rank, "world": self.world,
        }  # fmt: skip


def _process() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
