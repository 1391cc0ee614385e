"""Tenrec: videos shown in two feeds of Tencent, with clicks, likes, shares and follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["SOURCE", "load"]

Feed = Literal["QK-video", "QB-video"]
_TASKS: Final = ("click", "like", "share", "follow")


def load(*, folder: Path | str | None = None, feed: Feed = "QK-video", min_count: int = 5) -> Dataset:
    """Load the impressions of one feed.

    Args:
        folder: holds ``QK-video.csv`` or ``QB-video.csv``.
        feed: QK-video or QB-video.
        min_count: train rows that a value must occur in for an id of its own.

    Raises:
        DataError: the file is not there or has another form.
    """
    if feed not in ("QK-video", "QB-video"):
        raise DataError(f"Tenrec: feed should be QK-video or QB-video, found {feed!r}.")
    file = find_files(folder, [f"{feed}.csv", f"**/{feed}.csv"], SOURCE)[0]
    frame = pl.scan_csv(file)
    features: dict[str, Any] = dict.fromkeys(("user_id", "item_id", "video_category", "gender", "age"), "category")
    config = {
        "features": features,
        "tasks": {task: task for task in _TASKS},
        "user": "user_id",
        "split": {"by": "random", "validation": 0.1, "test": 0.1},
    }
    notes = (
        f"Tenrec, {feed}: the files have no time, so the split is random, and later deeds of a user can be in the "
        "train rows.",
        "Left out, because known only afterwards: watching_times.",
    )
    return dataset_of(SOURCE, frame, config, min_count=min_count, notes=notes)


SOURCE: Final = DataSource(
    "tenrec",
    load,
    summary="Videos in two feeds of Tencent (`feed`: QK-video, QB-video): clicks, likes, shares and follows.",
    obtain="Accept the licence on Tenrec's page (tenrec0.github.io), download Tenrec.zip and unpack it.",
    columns="user, video, its category, gender, age; tasks `click`, `like`, `share`, `follow`.",
    splits="random: a tenth each for validation and test, as in the published benchmark.",
    epochs=1,
    batch_size=4096,
    licence="CC BY-NC 4.0 (Tencent)",
    source="tenrec0.github.io; Yuan et al., NeurIPS 2022",
)
