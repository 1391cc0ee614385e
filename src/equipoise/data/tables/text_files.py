"""CSV and TSV files: parsed once, strictly and in bounded memory, and kept as Parquet in the cache folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from equipoise.data.cache import cache_folder
from equipoise.data.tables.content import content_hash
from equipoise.data.tables.faults import check_names_differ
from equipoise.errors import DataError
from equipoise.whole_files import replace_file

__all__ = ["as_parquet", "header_of"]

_VERSION: Final = 1  # to change whenever the same text gives other columns
_BLOCK: Final = 1 << 22
_ROWS_PER_GROUP: Final = 1 << 17
_CODECS: Final = {".gz": "gzip", ".zst": "zstd"}
_SHOWN: Final = 80  # characters of a bad row in a message
_FIELD_LIMIT: Final = 1 << 24


def as_parquet(file: Path, name: str, /, *, separator: str, null_values: Sequence[str]) -> Path:
    """Return a Parquet file with the rows of a text file, written once for as long as the text stays the same.

    A column becomes whole numbers, numbers or truth values only if each of its texts is one, and whole numbers only if
    they give the same texts back: ``007`` stays text.

    Args:
        name: the file in messages, if it was copied from elsewhere.

    Raises:
        DataError: the file is empty, not UTF-8, cut off, has a column name twice, or a row that cannot be read, which
            is named with its line.
        OSError: the cache folder cannot be written.
    """
    options = json.dumps([_VERSION, separator, list(null_values), content_hash(file)])
    digest = hashlib.blake2b(options.encode(), digest_size=8).hexdigest()
    path = cache_folder() / "text-files" / f"{file.name.partition('.')[0]}-{digest}.parquet"
    if path.is_file():
        return path
    try:
        with replace_file(path) as typed:
            texts = typed.with_suffix(".texts")
            try:
                _write_texts(file, name, texts, separator, list(null_values))
                scan = pl.scan_parquet(texts, glob=False)
                scan.select(_typed_columns(scan)).sink_parquet(typed, compression="zstd", compression_level=1)
            finally:
                texts.unlink(missing_ok=True)
    except OSError as error:
        error.add_note(
            f"{name} is converted once into the cache folder {path.parent}: free some space there, or set "
            "EQUIPOISE_CACHE to another folder."
        )
        raise
    return path


def header_of(file: Path, name: str, /, *, separator: str) -> list[str]:
    """Return the names in the first line of a text file; none if it is empty.

    Args:
        name: the file in messages, if it was copied from elsewhere.

    Raises:
        DataError: the line is not UTF-8, or a quote in it is never closed.
    """
    rows = _strict_rows(file, name, separator)
    _, header = next(rows, (0, list[str]()))
    rows.close()
    return header


class _Plain(io.RawIOBase):
    """The decompressed bytes of a text file; counts line ends and quotes on the way."""

    def __init__(self, file: Path, name: str) -> None:
        self.name = name
        self.lines = self.quotes = 0
        self._raw = pa.OSFile(str(file))
        codec = _CODECS.get(file.suffix)
        self._stream = self._raw if codec is None else pa.CompressedInputStream(self._raw, codec)

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        try:
            found = self._stream.read(len(target))
        except OSError as error:
            raise DataError(f"{self.name} cannot be read to its end: it is cut off or damaged ({error}).") from None
        target[: len(found)] = found
        self.lines += found.count(b"\n")
        self.quotes += found.count(b'"')
        return len(found)

    def close(self) -> None:
        self._stream.close()
        self._raw.close()
        super().close()


def _strict_rows(file: Path, name: str, separator: str) -> Generator[tuple[int, list[str]]]:
    """Yield the line on which each row begins and its fields, the header first; refuse what cannot be read."""
    csv.field_size_limit(_FIELD_LIMIT)
    begin = 1
    with (
        _Plain(file, name) as plain,
        io.TextIOWrapper(io.BufferedReader(plain, _BLOCK), "utf-8-sig", newline="") as text,
    ):
        reader = csv.reader(text, delimiter=separator, strict=True)
        try:
            for row in reader:
                if row:
                    yield begin, row
                begin = reader.line_num + 1
        except csv.Error as error:
            said = "a quote is never closed" if "end of data" in str(error) else str(error)
            raise DataError(f"{name}, line {begin}: the row that begins there cannot be read: {said}.") from None
        except UnicodeDecodeError:
            raise DataError(
                f"{name}, line {begin} or soon after: expected text in UTF-8, found other bytes. "
                "Convert the file, for example by `iconv -f WINDOWS-1252 -t UTF-8`."
            ) from None


def _write_texts(file: Path, name: str, target: Path, separator: str, null_values: list[str]) -> None:
    """Write the rows as Parquet with columns of text.

    The fast parser closes a quote at the end of the file, or at the next quote that it meets, without a word: where
    quotes are odd or rows are fewer than lines, the strict one reads the file, too.
    """
    header = header_of(file, name, separator=separator)
    if not header:
        raise DataError(f"{name} is empty: expected a header with the names of the columns, then rows.")
    check_names_differ(name, header)
    schema = pa.schema([(column, pa.string()) for column in header])
    with _Plain(file, name) as plain:
        try:
            reader = pa_csv.open_csv(
                plain,
                read_options=pa_csv.ReadOptions(block_size=_BLOCK, column_names=header, skip_rows=1),
                parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    column_types=schema, null_values=null_values, strings_can_be_null=True
                ),
            )
            count = _write_batches(reader, schema, target)
        except pa.ArrowInvalid as error:
            _refuse_bad_row(file, name, separator)
            raise DataError(f"{name} cannot be read: {error}.") from None
        doubtful = plain.quotes % 2 == 1 or (plain.quotes and plain.lines - 1 > count)
    if doubtful:
        _refuse_bad_row(file, name, separator)


def _write_batches(reader: Any, schema: pa.Schema, target: Path) -> int:
    """Write the batches, gathered into row groups; return the number of rows."""
    count, waiting = 0, list[pa.RecordBatch]()
    with pq.ParquetWriter(target, schema, compression="lz4") as writer:
        for batch in reader:
            waiting.append(batch)
            count += batch.num_rows
            if sum(len(part) for part in waiting) >= _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        writer.write_table(pa.Table.from_batches(waiting, schema))
    return count


def _refuse_bad_row(file: Path, name: str, separator: str) -> None:
    """Name the first row that cannot be read, or has another number of fields than the header."""
    rows = _strict_rows(file, name, separator)
    _, header = next(rows)
    for line, row in rows:
        if len(row) != len(header):
            found = separator.join(row)
            raise DataError(
                f"{name}, line {line}: expected {len(header)} fields as in the header, found {len(row)}: "
                f"{found[:_SHOWN]!r}{'…' if len(found) > _SHOWN else ''}. Correct or remove the row."
            )


_WHOLE: Final = r"^-?(0|[1-9]\d{0,17})$"
_LONG_OR_LED_BY_ZERO: Final = r"^[+-]?(0\d|\d{16})"


def _typed_columns(scan: pl.LazyFrame) -> list[pl.Expr]:
    """Return each column of text as the narrowest type that all of its texts have."""
    names = scan.collect_schema().names()
    kinds: dict[str, Callable[[pl.Expr], pl.Expr]] = {
        "null": lambda text: text.is_null().all(),
        "whole": lambda text: text.str.contains(_WHOLE).all(),
        "number": lambda text: (
            text.is_null()
            | (text.cast(pl.Float64, strict=False).is_not_null() & ~text.str.contains(_LONG_OR_LED_BY_ZERO))
        ).all(),
        "truth": lambda text: text.str.to_lowercase().is_in(["true", "false"]).all(),
    }
    found = scan.select(
        test(pl.col(name)).alias(f"{kind} {i}") for i, name in enumerate(names) for kind, test in kinds.items()
    ).collect(engine="streaming")
    columns = []
    for i, name in enumerate(names):
        kind = next((kind for kind in kinds if found[f"{kind} {i}"].item()), "text")
        text = pl.col(name)
        columns.append(
            {
                "null": text.cast(pl.Null),
                "whole": text.cast(pl.Int64),
                "number": text.cast(pl.Float64),
                "truth": text.str.to_lowercase() == "true",
                "text": text,
            }[kind]
        )
    return columns
