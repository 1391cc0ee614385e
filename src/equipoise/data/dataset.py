"""A data set: three splits, in memory as whole columns or on disk, read in whole batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from equipoise.data.ahead import ahead, batches_of_blocks, spans
from equipoise.errors import DataError
from equipoise.schema import Batch, Categorical, Schema

if TYPE_CHECKING:
    from equipoise.data.encoding import Encoding

__all__ = ["DAY", "AnySplit", "Dataset", "Split"]

DAY: Final = "day"
"""The key of a split that holds the day of each row, counted from 1970-01-01."""

_FINGERPRINT_ROWS: Final = 10_000


@dataclass(frozen=True)
class Split:
    """N examples as whole columns on one device.

    Attributes:
        categorical: ids, int32, shape [N, columns]; the columns are ``schema.categorical_columns``.
        numeric: values, float32, shape [N, columns]; the columns are ``schema.numeric_columns``.
        labels: of binary tasks 0, 1 or NaN (missing), of regressions finite or NaN; float32, shape [N, tasks].
        weight: how many examples of the natural distribution each row stands for, float32, shape [N].
        importance: what each row counts in the losses and metrics, float32, shape [N]; None: 1 each.
        keys: columns to group and to slice by, such as the user, that batches leave out: name -> codes, int64,
            shape [N].

    Raises:
        DataError: a tensor has another type, shape, number of rows or device.

    Example:
        >>> split = Split(
        ...     torch.zeros(5, 2, dtype=torch.int32), torch.zeros(5, 1), torch.ones(5, 3), torch.ones(5)
        ... )
        >>> [len(batch) for batch in split.batches(2)]
        [2, 2, 1]
    """

    categorical: Tensor
    numeric: Tensor
    labels: Tensor
    weight: Tensor
    importance: Tensor | None = None
    keys: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = {
            "categorical": (self.categorical, torch.int32, 2),
            "numeric": (self.numeric, torch.float32, 2),
            "labels": (self.labels, torch.float32, 2),
            "weight": (self.weight, torch.float32, 1),
        }
        if self.importance is not None:
            expected["importance"] = (self.importance, torch.float32, 1)
        expected |= {f"key {name!r}": (codes, torch.int64, 1) for name, codes in self.keys.items()}
        rows, device = self.labels.shape[:1], self.labels.device
        for name, (tensor, dtype, dimensions) in expected.items():
            if not isinstance(tensor, Tensor):
                raise DataError(
                    f"{name} of a split should be a {dimensions}-dimensional tensor of {dtype}, found a "
                    f"{type(tensor).__name__}. For a table of polars, pandas or pyarrow use equipoise.data.from_frame."
                )
            if tensor.dtype != dtype or tensor.dim() != dimensions:
                raise DataError(
                    f"{name} of a split should be a {dimensions}-dimensional tensor of {dtype}, found "
                    f"{tensor.dim()} dimensions of {tensor.dtype}."
                )
            if tensor.shape[:1] != rows or tensor.device != device:
                raise DataError(
                    f"{name} of a split should have as many rows as labels and lie on the same device "
                    f"({rows[0]}, {device}), found {tensor.shape[0]} on {tensor.device}."
                )

    @staticmethod
    def empty(schema: Schema, rows: int, /, *, importance: bool, keys: Iterable[str]) -> Split:
        """Return a split of the right shape whose values are still to be written.

        Args:
            importance: whether rows have an importance.
            keys: the names of its keys.
        """
        return Split(
            torch.empty(rows, len(schema.categorical_columns), dtype=torch.int32),
            torch.empty(rows, len(schema.numeric_columns)),
            torch.empty(rows, len(schema.tasks)),
            torch.empty(rows),
            torch.empty(rows) if importance else None,
            {key: torch.empty(rows, dtype=torch.int64) for key in keys},
        )

    @staticmethod
    def joined(parts: Sequence[Split], /) -> Split:
        """Return the rows of several splits with the same columns, one after the other."""
        importance = [part.importance for part in parts if part.importance is not None]
        return Split(
            torch.cat([part.categorical for part in parts]),
            torch.cat([part.numeric for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.weight for part in parts]),
            torch.cat(importance) if importance else None,
            {name: torch.cat([part.keys[name] for part in parts]) for name in parts[0].keys},
        )

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def nbytes(self) -> int:
        """The bytes that the columns of batches take."""
        return sum(column.nbytes for column in self._columns)

    def to(self, device: torch.device | str) -> Split:
        """Return the same split on another device; the same generator shuffles it into the same batches there."""
        return self._each(lambda column: column.to(device))

    def take(self, rows: Tensor | slice, /) -> Split:
        """Return the split of some rows, as a slice or by index."""
        return self._each(lambda column: column[rows])

    def check(self, schema: Schema, /) -> None:
        """Refuse values that the schema does not allow.

        Raises:
            ValueError: see :meth:`equipoise.schema.Batch.check`.
        """
        Batch(self.categorical, self.numeric, self.labels, self.weight, self.importance).check(schema)

    def add_to_hash(self, digest: hashlib._Hash, /) -> None:
        """Add 10,000 rows to a hash."""
        rows = torch.linspace(0, len(self) - 1, min(len(self), _FINGERPRINT_ROWS), dtype=torch.float64).long()
        for column in self.take(rows.to(self.labels.device)).to("cpu")._columns:
            digest.update(column.numpy().tobytes())

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None, skip: int = 0) -> Iterator[Batch]:
        """Yield batches of ``batch_size`` rows; a generator shuffles the rows, and a short last batch is then left out.

        On the CPU shuffled batches are gathered ahead in a thread.

        Args:
            skip: how many batches to leave out at the beginning.

        Raises:
            ValueError: ``batch_size`` is under 1, or a shuffled split holds fewer rows than one batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}.")
        if generator is None:
            for start in range(skip * batch_size, len(self), batch_size):
                rows = slice(start, start + batch_size)
                importance = None if self.importance is None else self.importance[rows]
                yield Batch(
                    self.categorical[rows].long(), self.numeric[rows], self.labels[rows], self.weight[rows], importance
                )
            return
        if len(self) < batch_size:
            raise ValueError(
                f"A training split must hold at least one batch of {batch_size} rows, found {len(self)}: "
                "lower batch_size or load more rows."
            )
        order = torch.randperm(len(self), generator=generator, device=generator.device).to(self.labels.device)
        start, stop = skip * batch_size, len(self) // batch_size * batch_size
        if not self.labels.is_cpu:
            for index in torch.split(order[start:stop], batch_size):
                yield self._selected(index)
            return
        blocks = ahead(
            partial(self.gather, order[first:last])
            for first, last in spans(start, stop, batch_size, self.nbytes // len(self))
        )
        yield from batches_of_blocks(blocks, batch_size)

    def gather(self, rows: Tensor | slice, /) -> Batch:
        """Return rows on the CPU as a batch with memory of its own, by index or as a slice; made for another thread."""
        # By NumPy: PyTorch would start further threads here, which take the processor from those of the training.
        return Batch(
            torch.from_numpy(_copied(self.categorical, rows).astype(np.int64)),
            torch.from_numpy(_copied(self.numeric, rows)),
            torch.from_numpy(_copied(self.labels, rows)),
            torch.from_numpy(_copied(self.weight, rows)),
            None if self.importance is None else torch.from_numpy(_copied(self.importance, rows)),
        )

    def _selected(self, index: Tensor) -> Batch:
        """Return rows as a batch on the device where they are."""
        return Batch(
            self.categorical.index_select(0, index).long(),
            self.numeric.index_select(0, index),
            self.labels.index_select(0, index),
            self.weight.index_select(0, index),
            None if self.importance is None else self.importance.index_select(0, index),
        )

    @property
    def _columns(self) -> list[Tensor]:
        columns = [self.categorical, self.numeric, self.labels, self.weight]
        return columns if self.importance is None else [*columns, self.importance]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Split:
        return replace(
            self,
            categorical=change(self.categorical),
            numeric=change(self.numeric),
            labels=change(self.labels),
            weight=change(self.weight),
            importance=None if self.importance is None else change(self.importance),
            keys={name: change(codes) for name, codes in self.keys.items()},
        )


def _copied(column: Tensor, rows: Tensor | slice) -> np.ndarray[Any, Any]:
    values = column.numpy()
    return values[rows].copy() if isinstance(rows, slice) else values.take(rows.numpy(), axis=0)


class AnySplit(Protocol):
    """N examples: in memory, as a :class:`Split`, or on disk, as a :class:`equipoise.data.StreamedSplit`.

    Training, evaluation and comparison use these members alone; they mean what those of :class:`Split` mean.
    """

    @property
    def labels(self) -> Tensor:
        """All labels, float32, shape [N, tasks]."""

    @property
    def weight(self) -> Tensor:
        """All weights, float32, shape [N]."""

    @property
    def importance(self) -> Tensor | None:
        """All importances, float32, shape [N]; None: 1 each."""

    @property
    def keys(self) -> Mapping[str, Tensor]:
        """All keys: name -> codes, int64, shape [N]."""

    @property
    def nbytes(self) -> int:
        """The bytes that the columns of batches take in memory."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> AnySplit:
        """Return the same split with what is in memory on another device."""

    def take(self, rows: Tensor | slice, /) -> Split:
        """Return some rows in memory, as a slice or by index."""

    def check(self, schema: Schema, /) -> None:
        """Refuse values that the schema does not allow, with a ``ValueError``."""

    def add_to_hash(self, digest: hashlib._Hash, /) -> None:
        """Add to a hash what tells the rows from others."""

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None, skip: int = 0) -> Iterator[Batch]:
        """Yield batches, shuffled by a generator, without the first ``skip`` of them."""


@dataclass(frozen=True)
class Dataset:
    """A named data set: its schema, its splits, and notes for readers of its results.

    Attributes:
        name: the name that reports show, with its most important caveat (such as: generated).
        notes: sentences that every report shows, such as how rows were sampled.
        best_ne: per task, the best reachable normalized entropy on the test split, where the truth is known.
        epochs: the default number of passes over the train split.
        batch_size: the default number of rows per step.
        licence: the publisher's licence in a few words; empty if unknown.
        source: a web address, a package or a file that the data comes from; empty if unknown.
        group: the key of the splits by which AUC is grouped, such as the user; none if empty.
        values: of keys and features, the names of their codes, for reports on slices.
        slices: the keys and categorical features by whose values metrics are reported.
        user_groups: the slices that describe users; the report says who gains and who loses by them.
        encoding: what turned the rows of files or tables into these columns, for prediction and export; None where
            the data did not come as a table.
        reading: how files were read (``format``, ``separator``, ``null_values``), so that prediction reads others
            alike; empty where there were none.

    Raises:
        DataError: a split is empty or does not fit the schema, an id lies outside its feature's range, a
            number is not finite, a label is none of 0, 1 and NaN, a weight is negative or not finite,
            ``best_ne`` names a task that the schema lacks, or ``epochs`` or ``batch_size`` is under 1. The
            message names split, column and count.
    """

    name: str
    schema: Schema
    train: AnySplit
    validation: AnySplit
    test: AnySplit
    notes: tuple[str, ...] = ()
    best_ne: dict[str, float] = field(default_factory=dict)
    epochs: int = 1
    batch_size: int = 2048
    licence: str = ""
    source: str = ""
    group: str = ""
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    slices: tuple[str, ...] = ()
    encoding: Encoding | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    user_groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for setting in ("epochs", "batch_size"):
            value = getattr(self, setting)
            if type(value) is not int or value < 1:
                raise DataError(f"{self.name}: {setting} should be a whole number from 1 up, found {value!r}.")
        unknown = sorted(self.best_ne.keys() - set(self.schema.task_names))
        if unknown:
            raise DataError(
                f"{self.name}: best_ne should be given for tasks out of {', '.join(self.schema.task_names)}; "
                f"found {', '.join(unknown)}."
            )
        if unknown := [name for name in self.user_groups if name not in self.slices]:
            raise DataError(
                f"{self.name}: user_groups should name slices ({', '.join(self.slices) or 'none'}); found "
                f"{', '.join(unknown)}."
            )
        for name, split in {"train": self.train, "validation": self.validation, "test": self.test}.items():
            if not callable(getattr(split, "batches", None)):
                raise DataError(
                    f"{self.name}, {name} split: expected a Split, found a {type(split).__name__}. For a table of "
                    "polars, pandas or pyarrow use equipoise.data.from_frame."
                )
            if len(split) == 0:
                raise DataError(f"{self.name}, {name} split: expected at least one row, found none.")
            try:
                split.check(self.schema)
            except ValueError as error:
                raise DataError(f"{self.name}, {name} split, {error}") from None
            sliced = [*split.keys, *(f.name for f in self.schema.categorical if isinstance(f, Categorical))]
            for role, wanted in (("group", [self.group] if self.group else []), ("slices", self.slices)):
                allowed = list(split.keys) if role == "group" else sliced
                if unknown := [key for key in wanted if key not in allowed]:
                    raise DataError(
                        f"{self.name}, {name} split: {role} should name columns out of {', '.join(allowed) or 'none'}; "
                        f"found {', '.join(unknown)}."
                    )

    def fingerprint(self) -> str:
        """Return a short hash of the schema and of 10,000 rows of each split, to tell data sets apart.

        Example:
            >>> from equipoise.data import load
            >>> found = [load("funnel", rows=500, seed=seed).fingerprint() for seed in (0, 0, 1)]
            >>> found[0] == found[1], found[0] == found[2]
            (True, False)
        """
        digest = hashlib.sha256(repr(self.schema).encode())
        for split in (self.train, self.validation, self.test):
            split.add_to_hash(digest)
            digest.update(str(len(split)).encode())
        return digest.hexdigest()[:12]

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data set with all its splits on another device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )
