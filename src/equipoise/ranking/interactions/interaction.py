"""The base of the interactions of features."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from equipoise.ranking.embedding import FeatureEmbedding, Input
from equipoise.schema import Schema

__all__ = ["Interaction"]


class Interaction(Input):
    """Embeds the features and lets them interact.

    A subclass sets ``width`` and says in :meth:`interact` how.

    Args:
        schema: the features.
        dim: width of one feature's embedding.
        sparse: give the embedding table sparse gradients.

    Attributes:
        features: the embedding.

    Example:
        >>> import torch
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> class Products(Interaction):
        ...     def __init__(self, schema, dim, *, sparse=False):
        ...         super().__init__(schema, dim, sparse=sparse)
        ...         self.width = dim
        ...     def interact(self, fields, numbers):
        ...         return fields.prod(dim=1)
        >>> products = Products(Schema([Categorical("user", 9), Categorical("item", 5)], [], [Task("buy")]), 4)
        >>> products(torch.tensor([[8, 0]]), torch.empty(1, 0)).shape
        torch.Size([1, 4])
    """

    def __init__(self, schema: Schema, dim: int, *, sparse: bool = False) -> None:
        super().__init__()
        self.features = FeatureEmbedding(schema, dim, sparse=sparse)

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        """See :meth:`Input.forward`."""
        return self.interact(*self.features.fields(categorical, numeric))

    @abstractmethod
    def interact(self, fields: Tensor, numbers: Tensor, /) -> Tensor:
        """Let features interact.

        Args:
            fields: the embedding of each categorical feature, shape [B, F, dim].
            numbers: the numeric columns, shape [B, N].

        Returns:
            Shape [B, width].
        """
