"""The feature embedding as TorchRec tables, which can be sharded over ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.ranking.embedding import FeatureEmbedding, IdRanges
from equipoise.schema import Categorical, Schema

__all__ = ["ShardableEmbedding"]


class ShardableEmbedding(nn.Module):
    """A :class:`FeatureEmbedding` with its values, in the form of one TorchRec table per categorical feature.

    Takes and returns what that does. TorchRec's ``DistributedModelParallel`` replaces ``tables`` in place.

    Args:
        schema: that of ``embedding``.
        embedding: where the tables' values come from.

    Attributes:
        width: columns of the output.
        tables: a ``torchrec.EmbeddingBagCollection``.

    Raises:
        ImportError: TorchRec is not installed.
    """

    def __init__(self, schema: Schema, embedding: FeatureEmbedding) -> None:
        super().__init__()
        torchrec = _torchrec()
        assert embedding.table is not None
        self.width = embedding.width
        self.ranges = IdRanges([feature for feature in schema.categorical if isinstance(feature, Categorical)])
        self.features = _table_names([feature.name for feature in schema.categorical])
        dim = embedding.table.embedding_dim
        rows = [feature.cardinality for feature in schema.categorical]
        self.tables = torchrec.EmbeddingBagCollection(
            tables=[
                torchrec.EmbeddingBagConfig(name=name, embedding_dim=dim, num_embeddings=count, feature_names=[name])
                for name, count in zip(self.features, rows, strict=True)
            ],
            device=embedding.table.weight.device,
        )
        with torch.no_grad():
            parts = embedding.table.weight.split(rows)  # type: ignore[no-untyped-call]
            for name, part in zip(self.features, parts, strict=True):
                self.tables.embedding_bags[name].weight.copy_(part)

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        """See :meth:`FeatureEmbedding.forward`."""
        ids = _torchrec().KeyedJaggedTensor(
            keys=self.features,
            values=self.ranges(categorical).t().reshape(-1),
            lengths=torch.ones(categorical.numel(), dtype=torch.int32, device=categorical.device),
        )
        embedded = self.tables(ids)
        # By name: sharding decides in which order the tables come back.
        return torch.cat([*(embedded[name] for name in self.features), numeric], dim=1)


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
