"""AliExpress: searches of four countries, with clicks and conversions; the data of PUB's main table."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["SOURCE", "load"]

Country = Literal["NL", "ES", "FR", "US"]
_USER_COLUMNS, _ITEM_COLUMNS = 33, 49
_USER_CATEGORIES: Final = (1, 2, 3, 4, 5, 6, 7, 8, 32, 33)  # the first is the search
_ITEM_CATEGORIES: Final = (19, 34, 35, 36, 40, 41, 42)
_VALIDATION_SHARE: Final = 10  # one search in ten of the train file


def load(*, folder: Path | str | None = None, country: Country = "NL") -> Dataset:
    """Load the data of one country.

    Args:
        folder: holds ``AliExpress_NL/train.csv`` and ``test.csv`` (prepared, with a header), or the published
            ``nl_user_train.csv``, ``nl_item_train.csv`` and those of the test (joined by their first column).
        country: NL, ES, FR or US.

    Raises:
        DataError: a file is not there or has another form.
    """
    if country not in ("NL", "ES", "FR", "US"):
        raise DataError(f"AliExpress: country should be NL, ES, FR or US, found {country!r}.")
    parts = [_part(folder, country, part) for part in ("train", "test")]
    search = pl.col("search_id").cast(pl.Int64) % _VALIDATION_SHARE
    train = parts[0].with_columns(split=pl.when(search == 0).then(pl.lit("validation")).otherwise(pl.lit("train")))
    frame = pl.concat([train, parts[1].with_columns(split=pl.lit("test"))], how="vertical_relaxed")
    names = frame.collect_schema().names()
    features = {name: "category" for name in names if name.startswith("categorical_")}
    features |= {name: "number" for name in names if name.startswith("numerical_")}
    config = {
        "features": features,
        "tasks": {"click": "click", "conversion": {"label": "conversion", "after": "click", "over": "all"}},
        "user": "search_id",
        "split": {"by": "column", "column": "split"},
    }
    note = f"AliExpress, {country}: AUC is grouped by search; one search in ten of the train file is for validation."
    return dataset_of(SOURCE, frame, config, min_count=1, notes=(note,))


def _part(folder: Path | str | None, country: Country, part: str) -> pl.LazyFrame:
    """Return the train or test rows in the prepared form."""
    low = country.lower()
    prepared = [f"AliExpress_{country}/{part}.csv", f"{part}.csv", f"*{part}_sample.csv"]
    published = [f"**/{low}_user_{part}.csv"]
    file = find_files(folder, [*published, *prepared], SOURCE)[0]
    if file.name != f"{low}_user_{part}.csv":
        return pl.scan_csv(file)
    users = _headless(file, "user", _USER_COLUMNS)
    items = _headless(find_files(folder, [f"**/{low}_item_{part}.csv"], SOURCE)[0], "item", _ITEM_COLUMNS)
    joined = users.join(items, left_on="user_1", right_on="item_1", how="inner", maintain_order="left_right")
    categories = [f"user_{place}" for place in _USER_CATEGORIES[1:]] + [f"item_{place}" for place in _ITEM_CATEGORIES]
    numbers = [f"user_{place}" for place in range(1, _USER_COLUMNS + 1) if place not in _USER_CATEGORIES]
    numbers += [f"item_{place}" for place in range(2, _ITEM_COLUMNS) if place not in _ITEM_CATEGORIES]
    outcome = pl.col(f"item_{_ITEM_COLUMNS}")
    return joined.select(
        pl.col("user_1").alias("search_id"),
        *(pl.col(column).alias(f"categorical_{place}") for place, column in enumerate(categories, start=1)),
        *(pl.col(column).alias(f"numerical_{place}") for place, column in enumerate(numbers, start=1)),
        (outcome >= 1).cast(pl.Int8).alias("click"),
        (outcome == 2).cast(pl.Int8).alias("conversion"),
    )


def _headless(file: Path, stem: str, columns: int) -> pl.LazyFrame:
    found = len(pl.scan_csv(file, has_header=False).collect_schema())
    if found != columns:
        raise DataError(f"{file}: expected {columns} columns, found {found}: fetch the published file again.")
    names = [f"{stem}_{place}" for place in range(1, columns + 1)]
    return pl.scan_csv(file, has_header=False, new_columns=names)


SOURCE: Final = DataSource(
    "aliexpress",
    load,
    summary="Searches on AliExpress in four countries (`country`: NL, ES, FR, US): results clicked and bought.",
    obtain="Download aliexpress_NL_datasets.zip (or another country's) from Tianchi, data set 74690, and unpack it.",
    columns="16 categorical, 63 numeric; tasks `click` and `conversion` (over all rows).",
    splits="the published train and test files; a tenth of the searches of the train file is for validation.",
    epochs=1,
    batch_size=2048,
    licence="for research (Alibaba Group)",
    source="tianchi.aliyun.com/dataset/74690; Li et al., CIKM 2020",
)
