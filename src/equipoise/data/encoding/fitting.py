"""Fit an encoding to train rows in one pass, in memory that grows with the vocabularies, not with the rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from equipoise.data.encoding.encoding import Encoding, FeatureEncoder
from equipoise.data.encoding.id_tables import Hashing, IdTable, Vocabulary
from equipoise.data.encoding.ids import CategoriesEncoder, CategoryEncoder, CrossEncoder, last_items
from equipoise.data.encoding.numbers import (
    BinsEncoder,
    NumberEncoder,
    Transform,
    VectorEncoder,
    numbers_of,
    transformed,
)
from equipoise.data.encoding.places import Place, check_columns
from equipoise.data.encoding.text import missing_count, normal_form
from equipoise.data.encoding.threads import for_each
from equipoise.data.encoding.times import TimeEncoder, check_format
from equipoise.errors import DataError
from equipoise.schema import Sampled, Task

if TYPE_CHECKING:
    from equipoise.data.tables.config import CategoriesConfig, CategoryConfig, FeatureConfig, NumberConfig

__all__ = ["fit"]

_BLOCK_ROWS: Final = 1 << 18
_SAMPLE_ROWS: Final = 1 << 20


def fit(
    train: pl.LazyFrame,
    features: Mapping[str, FeatureConfig],
    tasks: Sequence[Task],
    sampled: Sampled | None = None,
) -> Encoding:
    """Return the encoding fitted to train rows.

    The rows are read once, in blocks. Values are counted for the vocabularies; means and deviations are exact; edges
    of bins are quantiles of all rows, or of 2^20 of them drawn with a fixed seed if there are more. The result does not
    depend on the number of threads.

    Args:
        train: the train rows.
        features: the features by name, each with its column filled in.
        tasks: the labels to predict.
        sampled: how the rows were sampled, if they were.

    Raises:
        DataError: there are no rows, a column is missing or of another type, a value cannot be encoded, or a feature is
            missing in all rows or has no value that occurs often enough.

    Example:
        >>> from equipoise.data.tables.config import NumberConfig
        >>> age = NumberConfig(column="age")
        >>> encoding = fit(pl.LazyFrame({"age": [20, 40]}), {"age": age}, [Task("visit")])
        >>> encoding.features[0].mean, encoding.features[0].deviation
        (30.0, 10.0)
    """
    candidates = {name: _fitter(name, config, features) for name, config in features.items()}
    fitters = {name: fitter for name, fitter in candidates.items() if fitter is not None}
    columns = list(dict.fromkeys(column for config in features.values() for column in _columns(config)))
    check_columns(columns, train.collect_schema().names())
    missing = dict.fromkeys(columns, 0)
    rows = 0
    for block in train.select(columns).collect_batches(chunk_size=_BLOCK_ROWS, maintain_order=True):
        for column in columns:
            missing[column] += missing_count(block[column])

        def add(name: str, block: pl.DataFrame = block, first_row: int = rows) -> None:
            (column,) = _columns(features[name])
            fitters[name].add(block[column], Place(name, column, first_row))

        for_each(add, fitters, block.height)
        rows += block.height
    if not rows:
        raise DataError("Expected train rows to fit an encoding to, found none.")
    for name, config in features.items():
        if empty := [column for column in _columns(config) if missing[column] == rows]:
            raise DataError(
                f"Feature {name!r}: column {empty[0]!r} is missing in all {rows} train rows: leave the feature out."
            )
    tables = {
        name: _table(name, config, features, fitters)
        for name, config in features.items()
        if config.kind in {"category", "categories"} and not config.table
    }
    encoders = [_encoder(name, config, tables, fitters.get(name)) for name, config in features.items()]
    return Encoding(tables=tables, features=tuple(encoders), tasks=tuple(tasks), sampled=sampled)


def _columns(config: FeatureConfig) -> tuple[str, ...]:
    return config.of if config.kind == "cross" else (config.column,)


class _Fitter(ABC):
    """A running summary of the values of a column."""

    @abstractmethod
    def add(self, values: pl.Series, place: Place) -> None:
        """Take in the values of a block."""


def _fitter(name: str, config: FeatureConfig, features: Mapping[str, FeatureConfig]) -> _Fitter | None:
    if config.kind in {"category", "categories"}:
        if _owner(name, config, features).rows is not None:
            return None
        return _Counts(config.separator, config.length) if config.kind == "categories" else _Counts()
    if config.kind == "number":
        return _Quantiles() if config.scale == "bins" else _Moments("log1p" if config.scale == "log1p" else "none")
    if config.kind == "time":
        try:
            check_format(config.format)
        except ValueError as error:
            raise DataError(f"Feature {name!r}: {error}.") from None
    return None


def _owner(
    name: str, config: CategoryConfig | CategoriesConfig, features: Mapping[str, FeatureConfig]
) -> CategoryConfig | CategoriesConfig:
    owner = features.get(config.table) if config.table else config
    if owner is None or owner.kind not in {"category", "categories"} or owner.table:
        raise DataError(
            f"Feature {name!r}: table should name a feature of ids with a table of its own, found {config.table!r}."
        )
    return owner


class _Counts(_Fitter):
    """The number of times that each value occurs; whole numbers stay numbers until the end, which halves the memory."""

    def __init__(self, separator: str | None = None, length: int = 0) -> None:
        self._items = (separator, length)
        self._parts: dict[pl.DataType, list[pl.DataFrame]] = {}

    def add(self, values: pl.Series, place: Place) -> None:
        separator, length = self._items
        if separator is not None:
            values, _ = last_items(values, separator, length, place)
        counts = normal_form(values, place).alias("value").drop_nulls().value_counts()
        parts = self._parts.setdefault(counts["value"].dtype, [])
        parts.append(counts.with_columns(pl.col("count").cast(pl.Int64)))
        if sum(part.height for part in parts[1:]) > max(parts[0].height, _BLOCK_ROWS):
            parts[:] = [_merged(parts)]

    def counts(self) -> pl.DataFrame:
        """Return all texts with their counts."""
        texts = [_merged(parts).with_columns(pl.col("value").cast(pl.String)) for parts in self._parts.values()]
        return _merged(texts)


def _merged(counts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    if len(counts) == 1:
        return counts[0]
    return pl.concat(counts).group_by("value").agg(pl.col("count").sum())


class _Moments(_Fitter):
    """The mean and the deviation of numbers, relative to the first one: of equal numbers the deviation is 0."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._origin = 0.0
        self._mean = 0.0
        self._squares = 0.0
        self._count = 0
        self.missing = 0

    def add(self, values: pl.Series, place: Place) -> None:
        numbers = numbers_of(values, place)
        present = transformed(numbers[~np.isnan(numbers)], self._transform)
        self.missing += len(numbers) - len(present)
        if not len(present):
            return
        if not self._count:
            self._origin = float(present[0])
        with np.errstate(over="ignore", invalid="ignore"):  # refused once they are read
            relative = present - self._origin
            mean = float(relative.mean())
            squares = float(((relative - mean) ** 2).sum())
        # Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm" (1979), Eq. 2.1
        count = self._count + len(relative)
        difference = mean - self._mean
        self._squares += squares + difference * difference * self._count * len(relative) / count
        self._mean += difference * len(relative) / count
        self._count = count

    def mean_and_deviation(self, name: str) -> tuple[float, float]:
        """Return both; a deviation of 0 becomes 1."""
        mean, deviation = self._origin + self._mean, math.sqrt(self._squares / self._count)
        if not math.isfinite(deviation):
            raise DataError(f"Feature {name!r}: its numbers are too large to standardise: choose the scale bins.")
        return mean, deviation or 1.0


class _Quantiles(_Fitter):
    """A sample of numbers without replacement: those rows whose pseudo-random keys are the smallest."""

    def __init__(self) -> None:
        self._keys: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._numbers: NDArray[np.float64] = np.empty(0)

    def add(self, values: pl.Series, place: Place) -> None:
        numbers = numbers_of(values, place)
        present = ~np.isnan(numbers)
        rows = np.arange(place.first_row, place.first_row + len(numbers), dtype=np.uint64)[present]
        self._keys = np.concatenate([self._keys, _mixed(rows)])
        self._numbers = np.concatenate([self._numbers, numbers[present]])
        if len(self._keys) > _SAMPLE_ROWS:
            kept = np.argpartition(self._keys, _SAMPLE_ROWS)[:_SAMPLE_ROWS]
            self._keys, self._numbers = self._keys[kept], self._numbers[kept]

    def edges(self, bins: int) -> tuple[float, ...]:
        """Return the quantiles between bins; equal ones once, and none at the least number: nothing is below."""
        quantiles = np.quantile(self._numbers, np.arange(1, bins) / bins, method="higher")
        return tuple(np.unique(quantiles[quantiles > self._numbers.min()]).tolist())


def _mixed(rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a pseudo-random number for each row: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    mixed = (rows + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _table(
    name: str,
    config: CategoryConfig | CategoriesConfig,
    features: Mapping[str, FeatureConfig],
    fitters: Mapping[str, _Fitter],
) -> IdTable:
    if config.rows is not None:
        return Hashing(rows=config.rows)
    readers = [other for other, its in features.items() if other == name or getattr(its, "table", "") == name]
    counts = _merged([fitter.counts() for reader in readers if isinstance(fitter := fitters[reader], _Counts)])
    kept = counts.filter(pl.col("count") >= config.min_count)
    if not kept.height:
        raise DataError(
            f"Feature {name!r}: expected values that occur at least {config.min_count} times in the train rows "
            f"(min_count), found {counts['count'].max() or 0!r} at most: lower min_count, hash the values (rows), or "
            "leave the feature out."
        )
    return Vocabulary(values=kept.sort("count", "value", descending=[True, False])["value"])


def _encoder(name: str, config: FeatureConfig, tables: Mapping[str, IdTable], fitter: _Fitter | None) -> FeatureEncoder:
    if config.kind == "number":
        return _number_encoder(name, config, fitter)
    if config.kind == "vector":
        return VectorEncoder(name=name, column=config.column, width=config.width, separator=config.separator)
    if config.kind == "cross":
        return CrossEncoder(name=name, of=config.of, rows=config.rows)
    if config.kind == "time":
        return TimeEncoder(
            name=name, column=config.column, part=config.part, unit=config.unit or "s", format=config.format
        )
    table = config.table or name
    cardinality = tables[table].cardinality
    if config.kind == "category":
        return CategoryEncoder(name=name, column=config.column, table=table, cardinality=cardinality)
    return CategoriesEncoder(
        name=name, column=config.column, separator=config.separator, length=config.length,
        pooling=config.pooling, target=config.target, table=table, cardinality=cardinality,
    )  # fmt: skip


def _number_encoder(name: str, config: NumberConfig, fitter: _Fitter | None) -> FeatureEncoder:
    if isinstance(fitter, _Quantiles):
        return BinsEncoder(name=name, column=config.column, edges=fitter.edges(config.bins))
    assert isinstance(fitter, _Moments)
    mean, deviation = (0.0, 1.0) if config.scale == "none" else fitter.mean_and_deviation(name)
    indicator = fitter.missing > 0 if config.indicator is None else config.indicator
    return NumberEncoder(
        name=name, column=config.column, transform="log1p" if config.scale == "log1p" else "none",
        mean=mean, deviation=deviation, indicator=indicator,
    )  # fmt: skip
