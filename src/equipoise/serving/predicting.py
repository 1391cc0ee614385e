"""Predict raw rows of tables and files, block by block, in memory that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq
from torch import Tensor

from equipoise.data.encoding import Encoding
from equipoise.data.tables.files import Block, Source
from equipoise.errors import DataError, SettingError
from equipoise.serving.unseen import UnseenValues
from equipoise.whole_files import replace_file

__all__ = ["ROWS", "PredictedFile", "RowPredictor"]

ROWS: Final = 1 << 16
"""Rows that are read, predicted and written at once: a row group of the file."""

Predict = Callable[[Tensor, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class PredictedFile:
    """The facts about a file of predictions.

    Attributes:
        rows: the number of rows.
        unseen: of features with a vocabulary, the share of the values that the training has not seen, if there are any.
    """

    rows: int
    unseen: Mapping[str, float]


@dataclass(frozen=True)
class RowPredictor:
    """Predicts raw rows.

    Attributes:
        predict: returns one prediction per task for ids and numbers.
        names: the names of the tasks.
    """

    encoding: Encoding
    predict: Predict
    names: Sequence[str]

    def blocks(
        self, source: Source, /, *, ids: Sequence[str] = (), rows: int = ROWS, unseen: UnseenValues | None = None
    ) -> Generator[pl.DataFrame]:
        """Yield ids and predictions of all rows in order, a block at a time, at least one.

        Args:
            ids: raw columns to copy beside the predictions.
            unseen: counts the unseen values.

        Raises:
            DataError: a column is missing, or a value cannot be encoded; the message names file and row.
        """
        wanted = dict.fromkeys(self.encoding.columns, "the ranker") | dict.fromkeys(ids, "ids")
        table = source.table(wanted)
        is_empty = True
        for block in table.blocks(tuple(wanted), rows=rows):
            is_empty = False
            yield self._predicted(block, ids, unseen)
        if is_empty:
            # without rows, a type says nothing: pandas has objects then
            schema = {name: table.types[name] if name in ids else pl.Null for name in wanted}
            yield self._predicted(Block(pl.DataFrame(schema=schema), 0, "", 0), ids, unseen)

    def write(self, source: Source, out: Path, /, *, ids: Sequence[str] = (), rows: int = ROWS) -> PredictedFile:
        """Write the predictions of all rows as one Parquet file, whole or not at all: ids first, then the tasks.

        Raises:
            SettingError: an id is named twice or like a task, or ``out`` is a folder or one of the files that are read.
            DataError: as of :meth:`blocks`.
            OSError: the file cannot be written.
        """
        _check_ids(ids, self.names)
        _check_out(out, source)
        unseen = UnseenValues(self.encoding)
        with closing(self.blocks(source, ids=ids, rows=rows, unseen=unseen)) as blocks, replace_file(out) as temporary:
            first = next(blocks).to_arrow()
            done = first.num_rows
            with pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer:
                writer.write_table(first)
                for block in blocks:
                    writer.write_table(block.to_arrow().cast(first.schema))
                    done += block.height
        return PredictedFile(done, unseen.shares())

    def _predicted(self, block: Block, ids: Sequence[str], unseen: UnseenValues | None) -> pl.DataFrame:
        try:
            categorical, numeric = self.encoding.encode(block.frame, first_row=block.first_row_of_file)
        except DataError as error:
            raise DataError(f"{block.file}: {error}") from None
        if unseen is not None:
            unseen.add(block.frame, categorical)
        found = zip(self.names, self.predict(categorical, numeric), strict=True)
        return pl.DataFrame([*block.frame.select(ids), *(pl.Series(name, values.numpy()) for name, values in found)])


def _check_ids(ids: Sequence[str], tasks: Sequence[str]) -> None:
    if taken := sorted(set(ids) & set(tasks)):
        raise SettingError(
            f"The columns of the predictions are named like the tasks, so the id {taken[0]!r} has no place: leave it "
            "out, or rename that column of the files."
        )
    if len(set(ids)) < len(ids):
        raise SettingError(f"Every id should be named once, found {', '.join(ids)}.")


def _check_out(out: Path, source: Source) -> None:
    if out.is_dir():
        raise SettingError(f"Expected the name of a file for the predictions, found the folder {out}.")
    if out.exists() and any(part.path is not None and out.samefile(part.path) for part in source.parts):
        raise SettingError(f"The predictions would replace {out}, which is read: name another file.")
