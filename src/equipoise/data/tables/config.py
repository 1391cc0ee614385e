"""The description of own tables (files, features, tasks, splits): the ``data`` section of a settings file."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core.core_schema import ValidationInfo

from equipoise.data.tables.faults import as_message, cross_faults, faults_of
from equipoise.errors import DataError

__all__ = [
    "CategoriesConfig",
    "CategoryConfig",
    "CrossConfig",
    "FeatureConfig",
    "FileFormat",
    "NumberConfig",
    "SampledConfig",
    "SplitConfig",
    "TableConfig",
    "TaskConfig",
    "TimeConfig",
    "TimePartConfig",
    "VectorConfig",
]

FileFormat = Literal["parquet", "csv", "tsv"]
Unit = Literal["s", "ms", "us", "ns"]

_COLUMN: Final = "Column of the files. Default: the name of the feature."
_ROWS: Final = "Hash the values into so many rows of the embedding table, instead of a vocabulary."
_MIN_COUNT: Final = "Train rows that a value must occur in for an id of its own; rarer values share id 0."
_UNIT: Final = "Unit of a time that is a whole number: since 1970-01-01 UTC."
_FORMAT: Final = 'Format of a time that is text, such as "%Y-%m-%d %H:%M:%S". Default: ISO 8601.'


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_files(value: Any) -> Any:
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(os.fspath(file) if isinstance(file, os.PathLike) else file for file in several)


def _as_text(value: Any) -> Any:
    """Return a value of a YAML file as the text that the same value in a table has."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float | datetime.date):
        return str(value)
    return value


def _as_texts(value: Any) -> Any:
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(_as_text(entry) for entry in several)


def _short(key: str) -> BeforeValidator:
    """Read a word as a mapping with that one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _short_task(value: Any) -> Any:
    """Read a word as the label of a task; nothing, as after ``visit:``, stands for the defaults."""
    return {} if value is None else {"label": value} if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TimeConfig(_Config):
    """The column with the time of each row."""

    column: str = Field(min_length=1, description="Column of the files.")
    unit: Unit = Field(default="s", description=_UNIT)
    format: str | None = Field(default=None, description=_FORMAT)


class CategoryConfig(_Config):
    """A column of ids or words."""

    kind: Literal["category"] = "category"
    column: str = Field(default="", description=_COLUMN)
    min_count: int = Field(default=5, ge=1, description=_MIN_COUNT)
    rows: int | None = Field(default=None, ge=2, description=_ROWS)
    table: str = Field(default="", description="Feature whose vocabulary and embedding table this one shares.")


class NumberConfig(_Config):
    """A column of numbers."""

    kind: Literal["number"] = "number"
    column: str = Field(default="", description=_COLUMN)
    scale: Literal["standard", "log1p", "bins", "none"] = Field(
        default="standard",
        description="standard: mean 0, deviation 1 on train rows; log1p: the same after the logarithm of 1 + value; "
        "bins: ids of quantiles of the train rows; none: as it is.",
    )
    bins: int = Field(default=32, ge=2, description="Number of quantiles for the scale `bins`.")
    indicator: bool | None = Field(
        default=None,
        description="Add a feature that is 1 where the value is missing. Default: where train rows miss values.",
    )


class CategoriesConfig(_Config):
    """A column of several ids or words per row: a set, or a sequence with the newest item last."""

    kind: Literal["categories"] = "categories"
    column: str = Field(default="", description=_COLUMN)
    separator: str = Field(default="|", min_length=1, description="Text between the values, where the column is text.")
    length: int = Field(default=50, ge=1, description="Values kept per row, the last ones.")
    pooling: Literal["mean", "sum", "attention"] = Field(
        default="mean", description="Combine the embeddings of a row by mean, sum, or attention to `target` (DIN)."
    )
    target: str = Field(default="", description="Feature that attention compares the values with.")
    table: str = Field(default="", description="Feature whose vocabulary and embedding table this one shares.")
    min_count: int = Field(default=5, ge=1, description=_MIN_COUNT)
    rows: int | None = Field(default=None, ge=2, description=_ROWS)


class VectorConfig(_Config):
    """A column of lists of ``width`` numbers, such as a pretrained embedding."""

    kind: Literal["vector"] = "vector"
    column: str = Field(default="", description=_COLUMN)
    width: int = Field(ge=1, description="Numbers per row.")
    separator: str | None = Field(
        default=None, min_length=1, description="Text between the numbers, where the column is text."
    )


class CrossConfig(_Config):
    """The combination of several columns, hashed."""

    kind: Literal["cross"] = "cross"
    of: Names = Field(min_length=2, description="Category features, or columns of the files, to combine.")
    rows: int = Field(default=100_000, ge=2, description="Rows of the embedding table.")


class TimePartConfig(_Config):
    """A part of a time, such as the hour of the day, as an id."""

    kind: Literal["time"] = "time"
    column: str = Field(
        default="", description="Column of the files. Default: that of `time`, else the name of the feature."
    )
    part: Literal["hour", "weekday", "day", "month"] = Field(default="hour", description="Part of the time, in UTC.")
    unit: Unit | None = Field(default=None, description=f"{_UNIT} Default: as in `time`, else s.")
    format: str | None = Field(
        default=None, description="Format of a time that is text. Default: as in `time`, else ISO 8601."
    )


FeatureConfig = Annotated[
    CategoryConfig | NumberConfig | CategoriesConfig | VectorConfig | CrossConfig | TimePartConfig,
    Field(discriminator="kind"),
]
"""The description of one feature, told apart by ``kind``."""


class TaskConfig(_Config):
    """A label to learn."""

    kind: Literal["binary", "regression"] = Field(default="binary", description="binary: 0 or 1; regression: a number.")
    label: str = Field(
        default="",
        description="Column, or an SQL expression of columns (`watch_time > 30`). Default: the name of the task.",
    )
    after: str = Field(default="", description="Task that this one is nested in, as a conversion in a click.")
    over: Literal["parent", "all"] = Field(
        default="parent",
        description="Learn a nested task on the rows whose parent is 1, or on all rows (0 where it is 0).",
    )
    loss: Literal["squared", "huber", "log"] = Field(
        default="squared", description="Loss of a regression; log: squared error of the logarithm of 1 + target."
    )
    positive_weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Factor of the loss of a positive; binary tasks only."
    )
    description: str = Field(default="", description="One sentence for reports.")


class SampledConfig(_Config):
    """Negative sampling of the files: rows without a positive of ``task`` were kept at ``rate``, all others whole."""

    task: str = Field(description="Binary task by whose positives the rows were kept.")
    rate: float = Field(gt=0, le=1, description="Share kept of the rows without a positive.")


class SplitConfig(_Config):
    """The way rows become train, validation and test."""

    by: Literal["time", "column", "random", "user"] | None = Field(
        default=None,
        description="time: the last rows are for test; column: by its values; random; user: each user in one split "
        "alone. Default: time where `time` is given, else random.",
    )
    validation: float = Field(default=0.1, gt=0, lt=1, description="Share of the rows (or users) for validation.")
    test: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows (or users) for test.")
    column: str = Field(default="", description="Column that names the split of a row, for `by: column`.")
    values: dict[Literal["train", "validation", "test"], Annotated[tuple[str, ...], BeforeValidator(_as_texts)]] = (
        Field(
            default_factory=dict,
            description="Values of the column for each split. Default: train, validation and test themselves.",
        )
    )
    seed: int = Field(default=0, ge=0, description="Seed of a split that is random or by user.")


Features = Annotated[dict[str, Annotated[FeatureConfig, _short("kind")]], Field(min_length=1)]
Tasks = Annotated[dict[str, Annotated[TaskConfig, BeforeValidator(_short_task)]], Field(min_length=1)]


def _with_defaults(features: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Fill in what a feature takes from its name and from ``time``; a cross holds columns afterwards."""
    time: TimeConfig | None = info.data.get("time")
    found = {}
    for name, feature in features.items():
        changes: dict[str, Any] = {}
        if isinstance(feature, CrossConfig):
            columns = {other: features[other].column or other for other in feature.of if _is_category(features, other)}
            changes["of"] = tuple(columns.get(other, other) for other in feature.of)
        elif isinstance(feature, TimePartConfig):
            column = feature.column or (time.column if time is not None else name)
            same = time if time is not None and time.column == column else None
            changes["column"] = column
            changes["unit"] = feature.unit or (same.unit if same is not None else "s")
            changes["format"] = feature.format or (same.format if same is not None else None)
        else:
            changes["column"] = feature.column or name
        found[name] = feature.model_copy(update=changes)
    return found


def _is_category(features: Mapping[str, Any], name: str) -> bool:
    return isinstance(features.get(name), CategoryConfig)


def _labelled(tasks: dict[str, TaskConfig]) -> dict[str, TaskConfig]:
    return {name: task.model_copy(update={"label": task.label or name}) for name, task in tasks.items()}


def _with_kind(split: SplitConfig, info: ValidationInfo) -> SplitConfig:
    by = split.by or ("time" if info.data.get("time") is not None else "random")
    return split.model_copy(update={"by": by})


class TableConfig(_Config):
    """The description of own tables: files, features, tasks and splits.

    Once validated, nothing is left open: each feature has its column, each task its label, and the split its kind.

    Raises:
        DataError: a key is unknown, of another type or out of range, or names something that is not there. The message
            lists every fault with its place.

    Example:
        >>> config = TableConfig(
        ...     files="logs/*.parquet", time="ts",
        ...     features={"zip": "category", "recency": {"kind": "number", "scale": "log1p"}},
        ...     tasks={"visit": "visit", "conversion": {"after": "visit"}},
        ... )
        >>> config.name, config.features["zip"].column, config.tasks["conversion"].label, config.split.by
        ('logs', 'zip', 'conversion', 'time')
        >>> TableConfig(features={"zip": "categry"}, tasks={"visit": "visit"})
        Traceback (most recent call last):
        equipoise.errors.DataError: The description of the tables (`data` in a settings file) cannot be used.
          features.zip.kind: expected one of category, number, categories, vector, cross, time; found 'categry'; did \
you mean 'category'?
    """

    name: str = Field(default="", description="Name in reports. Default: that of the first file.")
    files: Annotated[tuple[str, ...], BeforeValidator(_as_files)] = Field(
        default=(),
        description="A file, a glob, a folder (also one partitioned by day) or an fsspec URL; or a list of them.",
    )
    format: FileFormat | None = Field(
        default=None, description="parquet, csv or tsv. Default: by the ending, before .gz and .zst."
    )
    separator: str = Field(
        default="", max_length=1, description="Character between the fields of CSV files. Default: comma; tab for TSV."
    )
    null_values: Names = Field(
        default=("", "NA", "NULL"), description="Texts that stand for a missing value in CSV and TSV files."
    )
    time: Annotated[TimeConfig | None, _short("column")] = Field(
        default=None, description="Column with the time of each row, or a mapping."
    )
    user: str = Field(default="", description="Column with the user, for AUC grouped by user and the split by user.")
    weight: str = Field(default="", description="Column with the importance of each row in losses and metrics.")
    features: Annotated[Features, AfterValidator(_with_defaults)] = Field(
        description="Features by name: a kind, or a mapping."
    )
    tasks: Annotated[Tasks, AfterValidator(_labelled)] = Field(
        description="Tasks by name: a column, an SQL expression, or a mapping."
    )
    sampled: SampledConfig | None = Field(
        default=None, description="Negative sampling that the files have gone through."
    )
    split: Annotated[SplitConfig, AfterValidator(_with_kind)] = Field(
        default=SplitConfig(), validate_default=True, description="Split of the rows into train, validation and test."
    )
    slices: Names = Field(default=(), description="Columns or category features by whose values metrics are reported.")
    user_groups: Names = Field(
        default=(), description="Those of `slices` that describe users: the report says who gains and who loses."
    )
    epochs: int = Field(default=1, ge=1, description="Passes over the train rows.")
    batch_size: int = Field(default=1024, ge=1, description="Rows per step.")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**{"name": _name_of(settings.get("files")), **settings})
        except ValidationError as error:
            raise DataError(as_message(faults_of(error, TableConfig))) from None
        if faults := list(cross_faults(self)):
            raise DataError(as_message(faults))

    @classmethod
    def of(cls, section: Any, /) -> TableConfig:
        """Return the description that the ``data`` section of a settings file holds.

        Raises:
            DataError: the section is no mapping, or see :class:`TableConfig`.
        """
        if not isinstance(section, Mapping) or not all(isinstance(key, str) for key in section):
            raise DataError(
                "Expected the description of the tables as a mapping with files, features and tasks; found "
                f"{section!r}."
            )
        return cls(**section)


def _name_of(files: Any) -> str:
    """Return the name of the first file without its endings; of a glob or a partition, of the folder that holds it."""
    found = _as_files(files)
    if files is None or not found or not isinstance(found[0], str):
        return "own data"
    parts = [part for part in PurePosixPath(found[0].partition("://")[2] or found[0]).parts if part != "/"]
    plain = [part for part in parts if not set(part) & set("*?[=") and part not in {".", ".."}]
    return plain[-1].partition(".")[0] or "own data" if plain else "own data"
