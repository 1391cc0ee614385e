"""Open Bandit: fashion items shown at three places of a page, with clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["SOURCE", "load"]

Policy = Literal["random", "bts"]
Campaign = Literal["all", "men", "women"]
_PLACES: Final = {1: "click_left", 2: "click_center", 3: "click_right"}


def load(*, folder: Path | str | None = None, policy: Policy = "random", campaign: Campaign = "all") -> Dataset:
    """Load the impressions of one campaign under one policy.

    The log has one label; the clicks at each of the three places are a task here, missing elsewhere.

    Args:
        folder: holds ``random/all/all.csv`` and ``random/all/item_context.csv``, or those of another campaign.
        policy: random, or bts (Bernoulli Thompson sampling).
        campaign: all, men or women.

    Raises:
        DataError: a file is not there or has another form.
    """
    if policy not in ("random", "bts") or campaign not in ("all", "men", "women"):
        raise DataError(
            "Open Bandit: expected the policy random or bts and the campaign all, men or women; found "
            f"{policy!r} and {campaign!r}."
        )
    place = f"{policy}/{campaign}"
    log = pl.scan_csv(find_files(folder, [f"{place}/{campaign}.csv", f"**/{place}/{campaign}.csv"], SOURCE)[0])
    items = pl.scan_csv(find_files(folder, [f"{place}/item_context.csv", f"**/{place}/item_context.csv"], SOURCE)[0])
    names = log.collect_schema().names()
    at = pl.col("position").cast(pl.Int64)
    clicks = [pl.when(at == number).then("click").alias(task) for number, task in _PLACES.items()]
    frame = log.join(items.drop("", strict=False), on="item_id", how="left").with_columns(clicks)
    item_names = [name for name in items.collect_schema().names() if name.startswith("item_feature_")]
    features: dict[str, Any] = {"item_id": "category"}
    features |= {name: "category" for name in names if name.startswith("user_feature_")}
    features |= {name: "number" if name == "item_feature_0" else "category" for name in item_names}
    features |= {name: "number" for name in names if name.startswith("user-item_affinity_")}
    features |= {"hour": {"kind": "time", "part": "hour"}}
    config = {
        "features": features,
        "tasks": {task: task for task in _PLACES.values()},
        "time": "timestamp",
        "split": {"by": "time", "validation": 0.1, "test": 0.2},
    }
    note = (
        f"Open Bandit, policy {policy}, campaign {campaign}: the log has one label, a click; each place on the page "
        "is a task of its own here."
    )
    return dataset_of(SOURCE, frame, config, min_count=1, notes=(note,))


SOURCE: Final = DataSource(
    "open-bandit",
    load,
    summary="Fashion items shown on ZOZOTOWN by a random policy or by Thompson sampling, with clicks at three places.",
    obtain="Download open_bandit_dataset.zip from research.zozo.com/data.html and unpack it.",
    columns="item, four user features, item features, affinities; tasks `click_left`, `click_center`, `click_right`.",
    splits="by time: the last fifth of the rows is the test, the tenth before it validation.",
    epochs=1,
    batch_size=4096,
    licence="CC BY 4.0 (ZOZO)",
    source="research.zozo.com/data.html; Saito et al., 2020, arXiv 2008.07146",
)
