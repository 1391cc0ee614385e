"""The text of a proposed settings file: YAML with a comment behind what was guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
import yaml

from equipoise.data.proposal.roles import Proposal, Remarked, propose
from equipoise.data.tables.files import open_files
from equipoise.data.tables.locations import find_files
from equipoise.data.tables.text_files import header_of
from equipoise.errors import DataError

__all__ = ["propose_settings"]

_SAMPLE_ROWS: Final = 200_000
_SEPARATORS: Final = ("\t", ";", "|")  # tried where a comma leaves one column
_WIDTH: Final = 60  # where remarks begin
_REMARKS: Final = {"null_values": "read as missing; those after NULL were found among numbers"}
_NULL_VALUES: Final = ("", "NA", "NULL")
_FEW_TEXTS: Final = 3  # among numbers, which may stand for a missing value


def propose_settings(files: Sequence[str], /) -> str:
    """Look at the first 200,000 rows of some files, and return the YAML of a settings file that reads them.

    Args:
        files: paths, globs, folders or URLs of Parquet, CSV or TSV files.

    Raises:
        DataError: no file is there, one cannot be read, or there are no rows.
    """
    patterns = _as_glob(files)
    stated: dict[str, Any] = {"files": patterns[0] if len(patterns) == 1 else patterns}
    frame, rows = _sample(stated)
    return "\n".join(_lines(propose(frame, rows), stated, frame, rows)) + "\n"


def _lines(found: Proposal, stated: dict[str, Any], sample: pl.DataFrame, rows: int) -> Iterator[str]:
    looked = f"all {rows:,} rows" if sample.height >= rows else f"the first {sample.height:,} of {rows:,} rows"
    counted = f"{sample.width} columns" if sample.width > 1 else "one column"
    yield f"# Proposed by `equipoise init` from {looked} and {counted}. Read the remarks, and edit."
    yield "# Then: equipoise data check FILE, equipoise audit FILE, equipoise compare FILE, equipoise train FILE."
    if any(name != name.strip() for name in sample.columns):
        yield "# Some names of columns begin or end with a space: remove the spaces around the separators of the file."
    if any(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in sample.columns):
        yield "# Some columns are named like values: if the file lacks a header, add one."
    yield "data:"
    for key, value in stated.items():
        yield _line(f"  {key}: ", Remarked(value, _REMARKS.get(key, "")))
    for key, entry in (("time", found.time), ("user", found.user)):
        if entry is not None:
            yield _line(f"  {key}: ", entry)
    yield "  features:"
    yield from (_line(f"    {_inline(name)}: ", entry) for name, entry in found.features.items())
    if not found.features:
        yield "    # no column looks like a feature: name one, such as"
        yield "    # channel: category"
    yield "  tasks:"
    yield from (_line(f"    {_inline(name)}: ", entry) for name, entry in found.tasks.items())
    if not found.tasks:
        yield "    # no column of 0 and 1 was found: name a label, or an expression, such as"
        yield '    # long_view: "watch_time > 30"'
    yield _line("  split: ", found.split)
    yield _line("  epochs: ", found.epochs)
    yield _line("  batch_size: ", found.batch_size)
    if found.left_out:
        yield "  # Left out:"
        yield from (f"  #   {name}: {reason}" for name, reason in found.left_out.items())
    yield "# Where the file keeps only a share of the rows without a positive, say so, and predictions are corrected:"
    yield "#   sampled: {task: NAME, rate: SHARE}"
    yield "model: shared-bottom"


def _line(start: str, entry: Remarked) -> str:
    line = start + _inline(entry.value)
    return f"{line.ljust(_WIDTH)}  # {entry.remark}" if entry.remark else line


def _inline(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _as_glob(files: Sequence[str]) -> list[str]:
    """Return one glob in place of the many paths that a shell has made of it."""
    folders = {str(Path(file).parent) for file in files}
    endings = {"".join(Path(file).suffixes) for file in files}
    if len(files) > 1 and len(folders) == len(endings) == 1:
        pattern = str(Path(folders.pop()) / f"*{endings.pop()}")
        if {str(path) for path in Path(pattern).parent.glob(Path(pattern).name)} == {str(Path(file)) for file in files}:
            return [pattern]
    return list(files)


def _separator_of(files: Sequence[str]) -> str:
    """Return the separator of text files whose first header is a single column by their ending; else nothing."""
    for location in find_files(files):
        if location.format != "parquet":
            by_ending = "\t" if location.format == "tsv" else ","
            header = header_of(location.path, location.name, separator=by_ending)
            found = max(_SEPARATORS, key="".join(header).count)
            return found if len(header) == 1 and found in header[0] else ""
    return ""


def _texts_among_numbers(sample: pl.DataFrame) -> list[str]:
    """Return the few texts, such as "n/a", that keep columns from being numbers."""
    found = set[str]()
    for values in sample.select(pl.col(pl.String)):
        there = values.drop_nulls()
        others = there.filter(there.cast(pl.Float64, strict=False).is_null())
        if 0 < others.n_unique() <= _FEW_TEXTS and len(others) * 2 < len(there):
            found |= set(others)
    return sorted(found)


def _sample(stated: dict[str, Any]) -> tuple[pl.DataFrame, int]:
    """Return the first rows of the files and the number of all; state a separator and null values of theirs."""
    files = [stated["files"]] if isinstance(stated["files"], str) else stated["files"]
    if separator := _separator_of(files):
        stated["separator"] = separator
    source = open_files(files, separator=separator)
    table = source.table()
    if texts := _texts_among_numbers(table.frame.head(_SAMPLE_ROWS).collect()):
        null_values = [*_NULL_VALUES, *texts]
        without = open_files(files, separator=separator, null_values=null_values)
        if without.types != source.types:  # Parquet has its types already
            stated["null_values"], table = null_values, without.table()
    if not table.rows:
        raise DataError(f"{', '.join(files)}: expected rows to look at, found the names of the columns alone.")
    return table.frame.head(_SAMPLE_ROWS).collect(), table.rows
