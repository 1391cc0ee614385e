"""The feature embedding as TorchRec tables, which can be sharded over ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.ranking.embedding import FeatureEmbedding, IdRanges, Input, columns_of
from equipoise.schema import PADDING, Categorical, Categories

__all__ = ["ShardableEmbedding"]


class ShardableEmbedding(Input):
    """A :class:`FeatureEmbedding` with its values, in the form of one TorchRec table per categorical feature.

    Takes and returns what that does. TorchRec's ``DistributedModelParallel`` replaces ``tables`` in place. Features
    that share a table are names of one TorchRec table; the items of :class:`Categories` travel without their padding,
    and TorchRec sums them.

    Args:
        embedding: where the schema and the tables' values come from.

    Attributes:
        dim: width of one feature's embedding.
        width: columns of the output.
        tables: a ``torchrec.EmbeddingBagCollection``.

    Raises:
        ImportError: TorchRec is not installed.
        SettingError: a feature is pooled by target attention.
    """

    def __init__(self, embedding: FeatureEmbedding) -> None:
        super().__init__()
        torchrec = _torchrec()
        assert embedding.table is not None
        self.schema = schema = embedding.schema
        if attended := [feature.name for feature in schema.categorical if _pooling(feature) == "attention"]:
            raise SettingError(
                f"Feature {attended[0]!r}: target attention reads the embedding of every item, but TorchRec's tables "
                "give their sum alone. Use pooling mean or sum, or sharding ddp or fsdp."
            )
        self.dim = embedding.dim
        self.width = embedding.width
        self.ranges = IdRanges(schema.categorical)
        self.features = _table_names([feature.name for feature in schema.categorical])
        owners = [feature for feature in schema.categorical if not feature.table]
        names = {feature.name: name for feature, name in zip(schema.categorical, self.features, strict=True)}
        readers: dict[str, list[str]] = {feature.name: [] for feature in owners}
        for feature in schema.categorical:
            readers[feature.table or feature.name].append(names[feature.name])
        self.tables = torchrec.EmbeddingBagCollection(
            tables=[
                torchrec.EmbeddingBagConfig(
                    name=names[owner.name],
                    embedding_dim=self.dim,
                    num_embeddings=owner.cardinality,
                    feature_names=readers[owner.name],
                )
                for owner in owners
            ],
            device=embedding.table.weight.device,
        )
        with torch.no_grad():
            rows = [owner.cardinality for owner in owners]
            parts = embedding.table.weight.split(rows)  # type: ignore[no-untyped-call]
            for owner, part in zip(owners, parts, strict=True):
                self.tables.embedding_bags[names[owner.name]].weight.copy_(part)

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        """See :meth:`FeatureEmbedding.forward`."""
        return torch.cat([*self._pooled(categorical), numeric], dim=1)

    def fields(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`FeatureEmbedding.fields`."""
        return torch.stack(self._pooled(categorical), dim=1), numeric

    def _pooled(self, categorical: Tensor) -> list[Tensor]:
        """Return the embedding of each feature, shape [B, dim]."""
        features = self.schema.categorical
        widths = [columns_of(feature) for feature in features]
        values: list[Tensor] = []
        lengths: list[Tensor] = []
        blocks = zip(
            self.ranges(categorical).split_with_sizes(widths, 1), categorical.split_with_sizes(widths, 1), strict=True
        )
        for feature, (ids, given) in zip(features, blocks, strict=True):
            # A missing value of a feature of one id is -1, too, and reads row 0.
            present = given != PADDING if isinstance(feature, Categories) else torch.ones_like(given, dtype=torch.bool)
            # Waits for the device, as TorchRec itself does when it exchanges the lengths.
            values.append(ids[present] if isinstance(feature, Categories) else ids.squeeze(1))
            lengths.append(present.sum(dim=1, dtype=torch.int32))
        jagged = _torchrec().KeyedJaggedTensor(keys=self.features, values=torch.cat(values), lengths=torch.cat(lengths))
        found = self.tables(jagged)
        # By name: sharding decides in which order the tables come back.
        return [
            found[name] / count.clamp(min=1).unsqueeze(1) if _pooling(feature) == "mean" else found[name]
            for name, feature, count in zip(self.features, features, lengths, strict=True)
        ]


def _pooling(feature: Categorical | Categories) -> str:
    return feature.pooling if isinstance(feature, Categories) else ""


def _table_names(features: Sequence[str]) -> list[str]:
    """Return the names of the features, or numbered ones where a name cannot be that of a module."""
    taken = dir(nn.ModuleDict())
    if all(re.fullmatch(r"[\w-]+", name, re.ASCII) and name not in taken for name in features):
        return list(features)
    return [f"feature{place}" for place in range(len(features))]


def _torchrec() -> Any:
    try:
        import torchrec  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ImportError(
            "Sharded embedding tables need TorchRec, which is not installed: pip install fbgemm-gpu-cpu tensordict "
            "pyre-extensions (for CUDA fbgemm-gpu), then pip install --no-deps torchrec, each in the release that "
            "belongs to your PyTorch."
        ) from error
    return torchrec
