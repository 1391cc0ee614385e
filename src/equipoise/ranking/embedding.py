"""From ids and numbers to one dense row per example."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn

from equipoise.schema import Schema

__all__ = ["FeatureEmbedding"]


class FeatureEmbedding(nn.Module):
    """Looks up every categorical feature in one table and sets the numeric features beside the result.

    All fields lie in one ``nn.Embedding``, one after the other, so that a batch is one lookup whatever the
    number of features. Its rows start normal with standard deviation 1 / sqrt(dim), that is with a norm near
    1, as in TensorFlow's ``embedding_column``. Smaller is not safer here: on Census-Income (two epochs of
    Adam at 1e-3, one seed, validation rows) 0.01 ended at a mean normalized entropy of 0.69 where this ended
    at 0.59; at 3e-3 both came to 0.58 to 0.59.

    Ids must lie within their feature's cardinality; that is for the data to ensure, since a check would cost
    a host sync in every step (an id too large reads the next feature's rows).

    Args:
        schema: names the features and their cardinalities.
        dim: width of one feature's embedding.
        sparse: give the table sparse gradients, for optimizers that accept them.

    Attributes:
        width: columns of the output, F * dim + N for F categorical and N numeric features.

    Raises:
        ValueError: the schema has no feature, or ``dim`` is under 1.

    Example:
        >>> from equipoise.schema import Categorical, Numeric, Schema, Task
        >>> schema = Schema([Categorical("user", 9), Categorical("item", 5)], [Numeric("age")], [Task("buy")])
        >>> embedding = FeatureEmbedding(schema, 4)
        >>> embedding(torch.tensor([[8, 0], [1, 4]]), torch.tensor([[0.5], [1.5]])).shape
        torch.Size([2, 9])
    """

    offsets: Tensor

    def __init__(self, schema: Schema, dim: int, *, sparse: bool = False) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"The embedding dimension must be at least 1, found {dim}.")
        if not schema.categorical and not schema.numeric:
            raise ValueError("A ranking model needs at least one feature, found a schema without any.")
        rows = [feature.cardinality for feature in schema.categorical]
        self.width = len(rows) * dim + len(schema.numeric)
        self.register_buffer("offsets", torch.tensor([0, *accumulate(rows)][: len(rows)], dtype=torch.int64))
        # Without a categorical feature there is no table: an empty one would be a parameter without a
        # gradient.
        self.table = nn.Embedding(sum(rows), dim, sparse=sparse) if rows else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        """Embeds a batch.

        Args:
            categorical: ids, int64, shape [B, F].
            numeric: values, floating point, shape [B, N].

        Returns:
            Shape [B, F * dim + N]: the embeddings in the schema's order, then the numbers as they are.
        """
        if self.table is None:
            return numeric
        embedded = self.table(categorical + self.offsets).flatten(1)
        return torch.cat((embedded, numeric), dim=1)
