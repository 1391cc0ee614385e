"""KuaiRand: videos shown in Kuaishou's feed, with seven kinds of feedback each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files, look_up, row_note
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["SOURCE", "load"]

Version = Literal["pure", "1k", "27k"]
_ROWS: Final = {"pure": 1_436_609, "1k": 11_713_045, "27k": 322_278_385}
"""Rows of the standard logs, as the publishers count them."""

_TASKS: Final = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_profile_enter")
_USER_CATEGORIES: Final = (
    "user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num_range", "fans_user_num_range",
    "friend_user_num_range", "register_days_range", *(f"onehot_feat{place}" for place in range(18)),
)  # fmt: skip
_VIDEO_CATEGORIES: Final = ("author_id", "video_type", "upload_type", "music_id", "music_type")


def load(*, folder: Path | str | None = None, version: Version = "pure", min_count: int = 5) -> Dataset:
    """Load the standard logs of one version, with the features of users and videos.

    Args:
        folder: holds ``log_standard_4_08_to_4_21_pure.csv``, ``log_standard_4_22_to_5_08_pure.csv``,
            ``user_features_pure.csv`` and ``video_features_basic_pure.csv``, or those of another version.
        version: pure, 1k or 27k.
        min_count: train rows that a value must occur in for an id of its own.

    Raises:
        DataError: a file is not there or has another form.
    """
    if version not in _ROWS:
        raise DataError(f"KuaiRand: version should be pure, 1k or 27k, found {version!r}.")
    logs = pl.concat([pl.scan_csv(file) for file in _files(folder, f"log_standard_*_{version}*.csv")])
    users = _table(folder, f"user_features_{version}.csv", ["user_id", *_USER_CATEGORIES])
    videos = _table(folder, f"video_features_basic_{version}*.csv", ["video_id", *_VIDEO_CATEGORIES, "tag"])
    frame = look_up(look_up(logs, users, on="user_id"), videos, on="video_id")
    rows = int(logs.select(pl.len()).collect().item())
    features: dict[str, Any] = dict.fromkeys(("user_id", "video_id", "tab"), "category")
    features |= dict.fromkeys((*_USER_CATEGORIES, *_VIDEO_CATEGORIES), "category")
    features |= {
        "tag": {"kind": "categories", "separator": ",", "length": 4},
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
        "slices": ("tab",),
    }
    note = f"KuaiRand-{version}, the standard logs; the randomly inserted videos are not used."
    return dataset_of(SOURCE, frame, config, min_count=min_count, notes=(note, *row_note(rows, _ROWS[version])))


def _files(folder: Path | str | None, pattern: str) -> list[Path]:
    return find_files(folder, [pattern, f"data/{pattern}", f"**/{pattern}"], SOURCE)


def _table(folder: Path | str | None, pattern: str, columns: list[str]) -> pl.LazyFrame:
    """Return some columns of a table of features, as text: the same code is 1 in one file and 1.0 in another."""
    frame = pl.concat([pl.scan_csv(file, infer_schema=False) for file in _files(folder, pattern)])
    found = frame.collect_schema().names()
    if missing := [column for column in columns if column not in found]:
        raise DataError(f"KuaiRand, {pattern}: expected the column {missing[0]!r}, found {', '.join(found)}.")
    key = columns[0]
    return frame.select(pl.col(key).cast(pl.Int64), *columns[1:])


SOURCE: Final = DataSource(
    "kuairand",
    load,
    summary="Videos shown in the feed of Kuaishou (`version`: pure, 1k, 27k) and what users did with them.",
    obtain="Download KuaiRand-Pure.tar.gz (or KuaiRand-1K, KuaiRand-27K) from Zenodo, record 10439422, and unpack it.",
    columns=f"users, videos, tags, tab and time; tasks {', '.join(f'`{task}`' for task in _TASKS)}.",
    splits="by time: the last fifth of the rows is the test, the tenth before it validation.",
    epochs=1,
    batch_size=2048,
    licence="CC BY-SA 4.0 (Kuaishou)",
    source="zenodo.org/records/10439422; Gao et al., CIKM 2022",
)
