"""Criteo attribution: a month of banners, with clicks, conversions and what they were attributed to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files, row_note
from equipoise.data.source import DataSource

__all__ = ["SOURCE", "load"]

_ROWS: Final = 16_468_027


def load(*, folder: Path | str | None = None, min_count: int = 5) -> Dataset:
    """Load the impressions.

    Args:
        folder: holds ``criteo_attribution_dataset.tsv.gz``.
        min_count: train rows that a value must occur in for an id of its own.

    Raises:
        DataError: the file is not there or has another form.
    """
    file = find_files(folder, ["criteo_attribution_dataset.tsv*", "**/criteo_attribution_dataset.tsv*"], SOURCE)[0]
    # -1 marks a first contact; it is no duration
    since = pl.col("time_since_last_click")
    frame = pl.scan_csv(file, separator="\t").with_columns(pl.when(since >= 0).then(since).alias("since_last_click"))
    rows = int(frame.select(pl.len()).collect().item())
    features: dict[str, Any] = {"campaign": "category"} | {f"cat{place}": "category" for place in range(1, 10)}
    features |= {
        "since_last_click": {"kind": "number", "scale": "log1p"},
        "cost": {"kind": "number", "scale": "log1p"},
        "hour": {"kind": "time", "part": "hour"},
    }
    config = {
        "features": features,
        "tasks": {
            "click": "click",
            "conversion": {"label": "conversion", "after": "click"},
            "attribution": {"label": "attribution", "after": "conversion"},
        },
        "time": {"column": "timestamp", "unit": "s"},
        "user": "uid",
        "split": {"by": "time", "validation": 0.1, "test": 0.2},
    }
    notes = (
        "Criteo Attribution Modeling for Bidding: hours and days are counted from the unknown start of the log.",
        "Left out, because known only afterwards: conversion_timestamp, conversion_id, click_pos, click_nb, cpo.",
    )
    return dataset_of(SOURCE, frame, config, min_count=min_count, notes=(*notes, *row_note(rows, _ROWS)))


SOURCE: Final = DataSource(
    "criteo-attribution",
    load,
    summary="A month of Criteo's banners: clicks, conversions after a click, and those attributed to Criteo.",
    obtain="Download criteo_attribution_dataset.zip from the Criteo AI Lab (or its mirror) and unpack it.",
    columns="campaign, nine categories, cost, time since the last click; tasks `click`, `conversion`, `attribution`.",
    splits="by time: the last fifth of the rows is the test, the tenth before it validation.",
    epochs=1,
    batch_size=4096,
    licence="CC BY-NC-SA 4.0 (Criteo)",
    source="ailab.criteo.com; Diemert et al., AdKDD 2017",
)
