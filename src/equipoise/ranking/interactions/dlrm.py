"""DLRM: dot products of all pairs of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.ranking import layers
from equipoise.ranking.interactions.interaction import Interaction
from equipoise.schema import Schema

__all__ = ["DLRM"]


class DLRM(Interaction):
    """The dot product of every pair of embeddings, beside a network over the numbers.

    Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
    arXiv 1906.00091, section 2.1.4: the bottom network turns the numbers, vectors among them, into one more embedding
    z_0. The output is z_0 and the products z_i · z_j of all pairs i < j, without those of an embedding with itself.
    As published, embeddings reach the layers above through their products alone. Without numbers there is no z_0.

    Args:
        schema: the features.
        dim: width of one feature's embedding.
        bottom: widths of the hidden layers of the bottom network; ``dim`` comes after them.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: there is no pair: the schema has one categorical feature without numbers, or none.

    Example:
        >>> from equipoise.schema import Categorical, Numeric, Task
        >>> schema = Schema([Categorical("user", 9), Categorical("item", 5)], [Numeric("age")], [Task("buy")])
        >>> DLRM(schema, 4)(torch.tensor([[8, 0]]), torch.ones(1, 1)).shape
        torch.Size([1, 7])
    """

    def __init__(self, schema: Schema, dim: int, *, bottom: Sequence[int] = (64,), sparse: bool = False) -> None:
        super().__init__(schema, dim, sparse=sparse)
        numbers = len(schema.numeric_columns)
        self.count = len(schema.categorical) + bool(numbers)
        if self.count < 2:
            raise ValueError(
                f"DLRM multiplies pairs of embeddings: expected two categorical features, or one and numbers, found "
                f"{len(schema.categorical)} categorical features and {numbers} numeric columns."
            )
        self.bottom = layers.mlp(numbers, (*bottom, dim)) if numbers else None
        self.width = self.count * (self.count - 1) // 2 + (dim if numbers else 0)

    def interact(self, fields: Tensor, numbers: Tensor, /) -> Tensor:
        """Return z_0 and the products of all pairs."""
        dense: list[Tensor] = []
        if self.bottom is not None:
            dense = [self.bottom(numbers)]
            fields = torch.cat((dense[0].unsqueeze(1), fields), dim=1)
        products = fields @ fields.transpose(1, 2)
        first, second = torch.triu_indices(self.count, self.count, 1, device=fields.device).unbind()
        return torch.cat([*dense, products[:, first, second]], dim=1)
