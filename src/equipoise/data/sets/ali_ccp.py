"""Ali-CCP: impressions on Taobao with clicks, and purchases after a click; the data of ESMM."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, find_files, look_up
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["SOURCE", "load"]

_USER_FIELDS: Final = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
_SAMPLE_FIELDS: Final = ("205", "206", "207", "216", "301", "508", "509", "702", "853")
_HISTORIES: Final = ("109_14", "110_14", "127_14", "150_14")
_FIELD, _ID, _ENTRY = "\x02", "\x03", "\x01"
_VALIDATION_SHARE: Final = 10


def load(*, folder: Path | str | None = None, histories: bool = False, min_count: int = 5) -> Dataset:
    """Load the train and test impressions.

    Args:
        folder: holds ``sample_skeleton_train.csv``, ``common_features_train.csv`` and those of the test (published), or
            ``ali_ccp_train.csv``, ``ali_ccp_val.csv`` and ``ali_ccp_test.csv`` (prepared, with a header).
        histories: read the users' histories too (fields 109_14, 110_14, 127_14, 150_14; the last 20 of each).
        min_count: train rows that a value must occur in for an id of its own.

    Raises:
        DataError: a file is not there or has another form.
    """
    published = (
        [Path(folder, f"sample_skeleton_{part}.csv") for part in ("train", "test")] if folder is not None else []
    )
    if published and all(file.is_file() for file in published):
        return _published(Path(published[0].parent), histories=histories, min_count=min_count)
    return _prepared(folder, min_count)


def _published(folder: Path, *, histories: bool, min_count: int) -> Dataset:
    lists = _HISTORIES if histories else ()
    parts = []
    for part in ("train", "test"):
        samples = _headless(
            folder / f"sample_skeleton_{part}.csv", ["sample_id", "click", "purchase", "common", "count", "list"]
        ).select(
            pl.col("click").cast(pl.Int8), pl.col("purchase").cast(pl.Int8), "common",
            *(_single(field) for field in _SAMPLE_FIELDS),
        )  # fmt: skip
        users = _headless(find_files(folder, [f"common_features_{part}.csv"], SOURCE)[0], ["common", "count", "list"])
        users = users.select(
            "common", *(_single(field) for field in _USER_FIELDS), *(_several(field) for field in lists)
        )
        parts.append(look_up(samples, users, on="common").drop("common"))
    validation = pl.col("101").cast(pl.Int64, strict=False) % _VALIDATION_SHARE == 0
    train = parts[0].with_columns(split=pl.when(validation).then(pl.lit("validation")).otherwise(pl.lit("train")))
    frame = pl.concat([train, parts[1].with_columns(split=pl.lit("test"))])
    frame = frame.filter(~((pl.col("click") == 0) & (pl.col("purchase") == 1)))
    features: dict[str, Any] = dict.fromkeys((*_USER_FIELDS, *_SAMPLE_FIELDS), "category")
    features |= {field: {"kind": "categories", "length": 20} for field in lists}
    note = (
        "Rows with a purchase but no click are left out, as is usual; one user in ten of the train file is for "
        "validation."
    )
    return _dataset(frame, features, note, min_count)


def _prepared(folder: Path | str | None, min_count: int) -> Dataset:
    names = {"train": "train", "val": "validation", "test": "test"}
    parts = [
        pl.scan_csv(find_files(folder, [f"ali_ccp_{part}.csv", f"ali_ccp_{part}*.csv"], SOURCE)[0]).with_columns(
            split=pl.lit(split)
        )
        for part, split in names.items()
    ]
    frame = pl.concat(parts, how="vertical_relaxed")
    columns = [name for name in frame.collect_schema().names() if name not in {"click", "purchase", "split"}]
    features = {name: "number" if name.startswith("D") else "category" for name in columns}
    frame = frame.filter(~((pl.col("click") == 0) & (pl.col("purchase") == 1)))
    note = "Read in the prepared form; rows with a purchase but no click are left out."
    return _dataset(frame, features, note, min_count)


def _dataset(frame: pl.LazyFrame, features: dict[str, Any], note: str, min_count: int) -> Dataset:
    config = {
        "features": features,
        "tasks": {"click": "click", "purchase": {"label": "purchase", "after": "click", "over": "all"}},
        "user": "101",
        "split": {"by": "column", "column": "split"},
    }
    return dataset_of(SOURCE, frame, config, min_count=min_count, notes=(f"Ali-CCP (Taobao). {note}",))


def _headless(file: Path, names: list[str]) -> pl.LazyFrame:
    """Read a published file: no header, and a last column with entries between commas of its own kind."""
    found = len(pl.scan_csv(file, has_header=False, quote_char=None, infer_schema=False).collect_schema())
    if found != len(names):
        raise DataError(f"{file}: expected {len(names)} columns, found {found}: fetch the published file again.")
    return pl.scan_csv(file, has_header=False, quote_char=None, infer_schema=False, new_columns=names)


def _single(field: str) -> pl.Expr:
    """Return the id of a field in a list of entries ``field \\x02 id \\x03 value``, null if it is not there."""
    return pl.col("list").str.extract(f"(?:^|{_ENTRY}){field}{_FIELD}([^{_ID}]*){_ID}", 1).alias(field)


def _several(field: str) -> pl.Expr:
    """Return the ids of a field as a list, in the order of the entries."""
    entries = pl.col("list").str.extract_all(f"(?:^|{_ENTRY}){field}{_FIELD}[^{_ID}]*{_ID}")
    ids = entries.list.eval(pl.element().str.extract(f"{_FIELD}([^{_ID}]*){_ID}", 1))
    return ids.alias(field)


SOURCE: Final = DataSource(
    "ali-ccp",
    load,
    summary="Impressions on Taobao: which were clicked, and which clicks became a purchase.",
    obtain="Download sample_train.tar.gz and sample_test.tar.gz from Tianchi, data set 408, and unpack them.",
    columns="18 categorical (and four histories with `histories`); tasks `click` and `purchase` (over all rows).",
    splits="the published train and test files; a tenth of the users of the train file is for validation.",
    epochs=1,
    batch_size=4096,
    licence="for research (Alibaba Group)",
    source="tianchi.aliyun.com/dataset/408; Ma et al., SIGIR 2018",
)
