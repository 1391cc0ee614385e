"""The description of own tables (files, features, tasks, splits): the ``data`` section of a settings file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CategoryConfig", "FeatureConfig", "NumberConfig", "SplitConfig", "TableConfig", "TaskConfig"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CategoryConfig(_Config):
    """A column of ids or words."""

    kind: Literal["category"] = "category"
    column: str | None = Field(default=None, description="Column of the files. Default: the name of the feature.")
    min_count: int = Field(default=5, ge=1, description="Train rows that a value must have for an id of its own.")


class NumberConfig(_Config):
    """A column of numbers."""

    kind: Literal["number"] = "number"
    column: str | None = Field(default=None, description="Column of the files. Default: the name of the feature.")


FeatureConfig = Annotated[CategoryConfig | NumberConfig, Field(discriminator="kind")]
"""The description of one feature, told apart by ``kind``."""


class TaskConfig(_Config):
    """A label to learn."""

    kind: Literal["binary", "regression"] = "binary"
    label: str | None = Field(
        default=None, description="Column, or an SQL expression of columns. Default: the task's name."
    )
    after: str = Field(default="", description="The task that this one is nested in.")


class SplitConfig(_Config):
    """The way rows become train, validation and test."""

    by: Literal["time", "random"] = "random"
    validation: float = Field(default=0.1, gt=0, lt=1, description="Share of the rows for validation.")
    test: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows for test.")
    seed: int = Field(default=0, description="Seed of a random split.")


class TableConfig(_Config):
    """The description of own tables: files, features, tasks and splits."""

    name: str = Field(default="own data", description="Name in reports.")
    files: str | list[str] = Field(description="A file, a folder, a glob or a URL; or several of them.")
    time: str | None = Field(default=None, description="Column with the time of each row.")
    features: dict[str, FeatureConfig] = Field(description="Features by name.")
    tasks: dict[str, TaskConfig] = Field(description="Tasks by name.")
    split: SplitConfig = Field(default=SplitConfig(), description="How rows are split.")
    epochs: int = Field(default=1, ge=1, description="Passes over the train rows.")
    batch_size: int = Field(default=1024, ge=1, description="Rows per step.")
