"""The rows and the widths of the model that every library trains, and the clock that measures one epoch."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from equipoise.data import Dataset, load

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Workload:
    """Rows of the generated funnel, and a shared bottom for its tasks.

    Attributes:
        rows: rows of the training split.
        tasks: number of tasks.
        batch: rows in a step.
        dimension: width of one feature's embedding.
        bottom: widths of the shared layers.
        tower: widths of each tower's hidden layers.
        rate: learning rate of Adam.
    """

    rows: int
    tasks: int
    batch: int
    dimension: int
    bottom: tuple[int, ...]
    tower: tuple[int, ...]
    rate: float

    @cached_property
    def dataset(self) -> Dataset:
        """The rows as equipoise holds them; the training split has whole batches only."""
        # The funnel puts 70 % of its rows into the training split. The others are left at one batch each: they are not
        # part of an epoch, and the libraries that insist on evaluating read them.
        found = load("funnel", rows=-(-self.rows * 10 // 7) + 10, tasks=self.tasks)
        first = slice(0, self.batch)
        return Dataset(
            found.name, found.schema, found.train.take(slice(0, self.rows)), found.validation.take(first),
            found.test.take(first),
        )  # fmt: skip

    @cached_property
    def categorical(self) -> dict[str, Column]:
        """The ids of each categorical feature, int64, shape [rows]."""
        names = self.dataset.schema.categorical_columns
        return {name: np.ascontiguousarray(ids) for name, ids in zip(names, self._ids.T, strict=True)}

    @cached_property
    def cardinalities(self) -> dict[str, int]:
        """The number of ids of each categorical feature."""
        return {feature.name: feature.cardinality for feature in self.dataset.schema.categorical}

    @cached_property
    def numeric(self) -> dict[str, Column]:
        """The values of each numeric feature, float32, shape [rows]."""
        values = self.dataset.train.take(slice(None)).numeric.numpy()
        names = self.dataset.schema.numeric_columns
        return {name: np.ascontiguousarray(column) for name, column in zip(names, values.T, strict=True)}

    @cached_property
    def labels(self) -> dict[str, Column]:
        """The labels of each task, float32, shape [rows]."""
        values = self.dataset.train.labels.numpy()
        names = self.dataset.schema.task_names
        return {name: np.ascontiguousarray(column) for name, column in zip(names, values.T, strict=True)}

    @cached_property
    def _ids(self) -> Column:
        return self.dataset.train.take(slice(None)).categorical.numpy().astype(np.int64)


class Clock:
    """Measures one pass over batches, from the request for the first to the one after the last step.

    What a library does before and after the epoch, such as building its loader or evaluating, is not counted.

    Attributes:
        seconds: the duration of the pass.
        processor: the processor time of this process and of its loading processes, which have ended by then.
    """

    def __init__(self) -> None:
        self.seconds = self.processor = self._started = self._worked = 0.0

    def start(self) -> None:
        """Begin."""
        self._started, self._worked = time.perf_counter(), processor_seconds()

    def stop(self) -> None:
        """Take the time since the start."""
        self.seconds, self.processor = time.perf_counter() - self._started, processor_seconds() - self._worked

    def around(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of a loader, and take the time."""
        self.start()
        yield from loader
        self.stop()

    def epoch(self, model: nn.Module) -> Epoch:
        """Return what was measured of a model's training."""
        return Epoch(self.seconds, self.processor, sum(parameter.numel() for parameter in model.parameters()))


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in used)


class TimedLoader:
    """A loader whose pass a clock measures."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return self.clock.around(self.loader)


@dataclass(frozen=True)
class Epoch:
    """One measured epoch.

    Attributes:
        seconds: its duration.
        processor: its processor time in seconds.
        parameters: numbers that the optimizer steps.
    """

    seconds: float
    processor: float
    parameters: int


Contender = Callable[[Workload], Epoch]
"""Trains a new model for one epoch."""
