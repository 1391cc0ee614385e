"""All encoders of a data set together, with the schema of what they give; see :class:`Encoding` for its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from torch import Tensor

from equipoise.data.encoding.id_tables import IdTable
from equipoise.data.encoding.ids import CategoriesEncoder, CategoryEncoder, CrossEncoder
from equipoise.data.encoding.numbers import BinsEncoder, NumberEncoder, VectorEncoder
from equipoise.data.encoding.places import check_columns
from equipoise.data.encoding.threads import for_each
from equipoise.data.encoding.times import TimeEncoder
from equipoise.errors import DataError
from equipoise.schema import Categorical, Categories, Sampled, Schema, Task

__all__ = ["Encoding", "FeatureEncoder"]

_VERSION: Final = 1

FeatureEncoder = Annotated[
    CategoryEncoder | CategoriesEncoder | CrossEncoder | NumberEncoder | BinsEncoder | VectorEncoder | TimeEncoder,
    Field(discriminator="kind"),
]
"""The encoder of one feature, told apart by ``kind``."""


def _known_keys(value: Any, info: ValidationInfo) -> Any:
    known = {field.name for field in fields(Sampled if info.field_name == "sampled" else Task)}
    if isinstance(value, Mapping) and (unknown := sorted(value.keys() - known)):
        raise ValueError(f"unknown key {unknown[0]!r}")  # older releases of pydantic ignore those of a dataclass
    return value


_Known = BeforeValidator(_known_keys)


class Encoding(BaseModel):
    """The way from raw columns to a batch: encoders fitted on train rows, and the tasks that a model predicts.

    Attributes:
        tables: the tables from values to ids, by the name of the feature that owns them.
        features: the encoders; those of ids fill ``Batch.categorical`` in their order, those of floats
            ``Batch.numeric``.
        tasks: the labels to predict.
        sampled: how the train rows were sampled, if they were.

    Example:
        >>> encoding = Encoding.from_json('''{
        ...     "version": 1,
        ...     "tables": {"zip": {"kind": "vocabulary", "values": ["rural", "urban"]}},
        ...     "features": [
        ...         {"kind": "category", "name": "zip", "column": "zip_code", "table": "zip", "cardinality": 3},
        ...         {"kind": "number", "name": "age", "column": "age",
        ...          "transform": "none", "mean": 40.0, "deviation": 10.0, "indicator": true}
        ...     ],
        ...     "tasks": [{"name": "visit"}],
        ...     "sampled": null
        ... }''')
        >>> ids, values = encoding.encode(pl.DataFrame({"zip_code": ["urban", "moon"], "age": [25, None]}))
        >>> ids.tolist(), values.tolist()
        ([[2], [0]], [[-1.5, 0.0], [0.0, 1.0]])
        >>> Encoding.from_json(encoding.to_json()) == encoding
        True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = _VERSION
    tables: Mapping[str, IdTable]
    features: tuple[FeatureEncoder, ...]
    tasks: tuple[Annotated[Task, _Known], ...]
    sampled: Annotated[Sampled | None, _Known] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        used = set()
        for encoder in self.features:
            if isinstance(encoder, CategoryEncoder | CategoriesEncoder):
                table = self.tables.get(encoder.table)
                if table is None or table.cardinality != encoder.cardinality:
                    found = "none" if table is None else f"one of {table.cardinality}"
                    raise ValueError(
                        f"feature {encoder.name!r}: expected a table {encoder.table!r} of {encoder.cardinality} ids, "
                        f"found {found}"
                    )
                used.add(encoder.table)
        if unused := sorted(self.tables.keys() - used):
            raise ValueError(f"expected tables that features read, found also {', '.join(unused)}")
        _ = self.schema_of_batches  # raises where names or tables do not fit
        return self

    @classmethod
    def from_json(cls, text: str | bytes, /) -> Self:
        """Return the encoding that :meth:`to_json` wrote.

        Raises:
            DataError: the text is no JSON, of another version, or has an unknown, missing or wrong key.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(_message(error)) from None

    def to_json(self) -> str:
        """Return the encoding as JSON."""
        return self.model_dump_json()

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

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that :meth:`encode` needs."""
        return tuple(dict.fromkeys(column for encoder in self.features for column in encoder.columns))

    def encode(self, frame: pl.DataFrame, /, *, first_row: int = 0) -> tuple[Tensor, Tensor]:
        """Return the ids, int32, and the floats, float32, of raw rows; labels are not needed.

        Args:
            frame: raw rows; columns that no feature reads are ignored.
            first_row: the number of the first row, for messages: blocks of a file then name rows of the file.

        Raises:
            DataError: a column is missing or of another type, or a value cannot be encoded; the message names the
                feature, the column, the row and the value.
        """
        check_columns(self.columns, frame.columns)
        blocks = for_each(lambda encoder: encoder.encode(frame, self.tables, first_row), self.features, frame.height)
        return _joined(blocks, np.int32, frame.height), _joined(blocks, np.float32, frame.height)

    def value_names(self, feature: str, /) -> list[str]:
        """Return a name for each id of a feature, for reports; none for a feature of floats.

        Raises:
            DataError: there is no such feature.
        """
        for encoder in self.features:
            if encoder.name == feature:
                return encoder.value_names(self.tables)
        names = ", ".join(encoder.name for encoder in self.features)
        raise DataError(f"Expected a feature out of {names}; found {feature!r}.")


def _joined(blocks: Sequence[NDArray[Any]], dtype: type[np.number[Any]], rows: int) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty((rows, 0), dtype), *(b for b in blocks if b.dtype == dtype)], 1))


def _message(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if place == "version":
        return f"Expected an encoding of version {_VERSION}, found version {first['input']!r}: update equipoise."
    found = first["msg"].removeprefix("Value error, ")
    return f"The JSON of an encoding cannot be used: {f'{place}: ' if place else ''}{found}."
