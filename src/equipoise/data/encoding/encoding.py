"""All encoders of a data set together, with the schema of what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from equipoise.data.encoding.features import FeatureEncoder
from equipoise.errors import DataError
from equipoise.schema import Categorical, Categories, Sampled, Schema, Task

__all__ = ["Encoding"]


class Encoding(BaseModel):
    """The way from raw columns to a batch: encoders fitted on train rows, and the tasks that a model predicts.

    Attributes:
        features: the encoders in the order of the schema: those of ids first.

    Example:
        >>> encoding = Encoding(
        ...     features=[{"kind": "category", "name": "zip", "column": "zip", "vocabulary": ["rural", "urban"]}],
        ...     tasks=[{"name": "visit"}],
        ... )
        >>> encoding.encode(pl.DataFrame({"zip": ["urban", None, "moon"]}))[0].tolist()
        [[2], [0], [0]]
        >>> Encoding.model_validate_json(encoding.model_dump_json()) == encoding
        True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    features: Sequence[FeatureEncoder]
    tasks: Sequence[Task]
    sampled: Sampled | None = None

    @property
    def schema_of_batches(self) -> Schema:
        """The schema of the encoded columns."""
        found = [encoder.feature for encoder in self.features]
        return Schema(
            [feature for feature in found if isinstance(feature, Categorical | Categories)],
            [feature for feature in found if not isinstance(feature, Categorical | Categories)],
            list(self.tasks),
            self.sampled,
        )

    def encode(self, frame: pl.DataFrame, /) -> tuple[Tensor, Tensor]:
        """Return the ids, int32, and the floats, float32, of raw rows; labels are not needed.

        Raises:
            DataError: a column is missing or of another type.
        """
        if missing := sorted({encoder.column for encoder in self.features} - set(frame.columns)):
            raise DataError(f"Expected the column {missing[0]!r}, found only {', '.join(frame.columns)}.")
        ids: list[np.ndarray] = []
        floats: list[np.ndarray] = []
        for encoder in self.features:
            block = encoder.encode(frame)
            (ids if isinstance(encoder.feature, Categorical | Categories) else floats).append(block)
        rows = frame.height
        categorical = np.concatenate(ids, axis=1) if ids else np.empty((rows, 0), np.int32)
        numeric = np.concatenate(floats, axis=1) if floats else np.empty((rows, 0), np.float32)
        return torch.from_numpy(categorical), torch.from_numpy(numeric)
