"""A small slice of KuaiRand: six kinds of feedback of 664 users, biased by how its rows were selected."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files, folder_of, row_note
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["SOURCE", "load"]

_FILE: Final = "log_explicit_kcore15.csv.gz"
_ROWS: Final = 41_828
_TASKS: Final = ("is_click", "long_view", "is_profile_enter", "is_comment", "is_forward", "is_follow")
_COLUMNS: Final = ("user_id", "video_id", "time_ms", "duration_ms", *_TASKS)
_BIAS: Final = (
    "A slice of KuaiRand-27K (Kuaishou, CC BY-SA 4.0) that holds only rows with a like or a hate, of users with more "
    "than 15 such rows: four rows in five are likes, and clicks are far more frequent than in the feed. Results show "
    "how methods behave with many tasks, rare labels and large vocabularies; they say nothing about KuaiRand."
)


def load(*, folder: Path | str | None = None, min_count: int = 5) -> Dataset:
    """Load the slice: user, video, its length and the time; six tasks.

    The like, by which the rows were selected, is neither a feature nor a task; nor are play time and the time spent
    on comments, which are known only afterwards.

    Args:
        folder: holds ``log_explicit_kcore15.csv.gz`` (separated by tabs); by default ``$EQUIPOISE_DATA/kuairand``, else
            ``kuairand`` in the cache folder.
        min_count: train rows that a value must occur in for an id of its own.

    Raises:
        DataError: the file is not there or has another form.
    """
    file = find_files(folder_of("kuairand", folder), [_FILE], SOURCE)[0]
    frame = pl.read_csv(file, separator="\t")
    if missing := [column for column in _COLUMNS if column not in frame.columns]:
        raise DataError(f"{file}: expected the column {missing[0]!r}, found {', '.join(frame.columns)}.")
    features: dict[str, Any] = {
        "user_id": "category",
        "video_id": "category",
        "duration_ms": {"kind": "number", "scale": "log1p"},
        "hour": {"kind": "time", "part": "hour"},
        "weekday": {"kind": "time", "part": "weekday"},
    }
    config = {
        "features": features,
        "tasks": {task: task for task in _TASKS},
        "time": {"column": "time_ms", "unit": "ms"},
        "user": "user_id",
        "split": {"by": "time", "validation": 0.1, "test": 0.2},
    }
    notes = (_BIAS, *row_note(frame.height, _ROWS))
    return dataset_of(SOURCE, frame.lazy(), config, min_count=min_count, notes=notes)


SOURCE: Final = DataSource(
    "kuairand-slice",
    load,
    summary="41,828 rows of KuaiRand-27K with a like or a hate: six other kinds of feedback, from a click in two rows "
    "of three to a follow in one of 140. Biased by this selection: not for claims about KuaiRand.",
    obtain=f"Select the rows with a like or a hate of KuaiRand-27K (Zenodo, record 10439422), keep users with more "
    f"than 15, and write them separated by tabs as {_FILE} into $EQUIPOISE_DATA/kuairand.",
    columns=f"user, video, length, time; tasks {', '.join(f'`{task}`' for task in _TASKS)}.",
    splits="by time: the last fifth of the rows is the test, the tenth before it validation.",
    epochs=2,
    batch_size=512,
    licence="CC BY-SA 4.0 (Kuaishou)",
    source="zenodo.org/records/10439422; Gao et al., CIKM 2022",
)
