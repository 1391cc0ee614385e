"""FM: the second-order term of factorization machines, kept as a vector."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.ranking.interactions.interaction import Interaction
from equipoise.ranking.interactions.numeric_fields import NumericFields
from equipoise.schema import Schema

__all__ = ["FM"]


class FM(Interaction):
    """All features side by side, and the sum of the products of all pairs of their embeddings.

    Rendle, "Factorization Machines", ICDM 2010. Its second-order term is Σ_{i<j} (v_i · v_j) x_i x_j, for which lemma
    3.1 gives a linear time. Kept as a vector, before the sum over the embedding's columns, it is the bi-interaction of
    He and Chua, "Neural Factorization Machines", SIGIR 2017, equation 4::

        ½ ((Σ_i x_i v_i)² − Σ_i (x_i v_i)²)        the squares column by column

    Numbers have embeddings for this too (:class:`NumericFields`). The output is first what a model without
    interaction reads, for the terms of first order, then the vector of width ``dim``; their weights are those of the
    layers above.

    Args:
        schema: the features.
        dim: width of one feature's embedding.
        sparse: give the embedding table sparse gradients.

    Example:
        >>> from equipoise.schema import Categorical, Numeric, Task
        >>> schema = Schema([Categorical("user", 9), Categorical("item", 5)], [Numeric("age")], [Task("buy")])
        >>> FM(schema, 4)(torch.tensor([[8, 0]]), torch.ones(1, 1)).shape
        torch.Size([1, 13])
    """

    def __init__(self, schema: Schema, dim: int, *, sparse: bool = False) -> None:
        super().__init__(schema, dim, sparse=sparse)
        self.numbers = NumericFields(schema, dim)
        self.width = self.features.width + dim

    def interact(self, fields: Tensor, numbers: Tensor, /) -> Tensor:
        """Return the features and the sum of the products of all pairs."""
        every = torch.cat((fields, self.numbers(numbers)), dim=1)
        pairs = (every.sum(dim=1).square() - every.square().sum(dim=1)) / 2
        return torch.cat((fields.flatten(1), numbers, pairs), dim=1)
