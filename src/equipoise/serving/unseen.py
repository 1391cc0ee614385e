"""The share of values that a trained ranker has never seen: operators see by it that a ranker is out of date."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from torch import Tensor

from equipoise.data.encoding import Encoding
from equipoise.data.encoding.id_tables import Vocabulary
from equipoise.data.encoding.ids import CategoriesEncoder, CategoryEncoder
from equipoise.data.encoding.text import missing_count
from equipoise.schema import Categories

__all__ = ["UnseenValues"]


class UnseenValues:
    """Counts, for each feature with a vocabulary, the values that are not in it; missing ones do not count.

    Example:
        >>> encoding = Encoding.from_json('''{
        ...     "version": 1, "tables": {"zip": {"kind": "vocabulary", "values": ["rural", "urban"]}},
        ...     "features": [{"kind": "category", "name": "zip", "column": "zip", "table": "zip", "cardinality": 3}],
        ...     "tasks": [{"name": "visit"}], "sampled": null
        ... }''')
        >>> rows = pl.DataFrame({"zip": ["urban", "moon", None]})
        >>> unseen = UnseenValues(encoding)
        >>> unseen.add(rows, encoding.encode(rows)[0])
        >>> unseen.shares()
        {'zip': 0.5}
    """

    def __init__(self, encoding: Encoding, /) -> None:
        self._encoders: list[tuple[CategoryEncoder | CategoriesEncoder, slice]] = []
        start = 0
        for encoder in encoding.features:
            feature = encoder.feature
            if not hasattr(feature, "cardinality"):
                continue
            width = feature.length if isinstance(feature, Categories) else 1
            if isinstance(encoder, CategoryEncoder | CategoriesEncoder) and isinstance(
                encoding.tables[encoder.table], Vocabulary
            ):
                self._encoders.append((encoder, slice(start, start + width)))
            start += width
        self._unseen = np.zeros(len(self._encoders), np.int64)
        self._values = np.zeros(len(self._encoders), np.int64)

    def add(self, frame: pl.DataFrame, ids: Tensor, /) -> None:
        """Count the values of raw rows, given the ids that the encoding made of them."""
        for place, (encoder, columns) in enumerate(self._encoders):
            block = ids[:, columns].numpy()
            missing = 0 if isinstance(encoder, CategoriesEncoder) else missing_count(frame[encoder.column])
            self._unseen[place] += int((block == 0).sum()) - missing
            self._values[place] += int((block >= 0).sum()) - missing

    def shares(self) -> Mapping[str, float]:
        """Return the share of unseen values of each feature that has any, the largest first."""
        found = {
            encoder.name: float(unseen / values)
            for (encoder, _), unseen, values in zip(self._encoders, self._unseen, self._values, strict=True)
            if unseen
        }
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))
