"""The shared bottom: one network for all tasks, then a tower each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from equipoise.ranking import layers
from equipoise.ranking.interactions import build_input
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.schema import Schema

__all__ = ["SharedBottom"]


class SharedBottom(RankingModel):
    """Embeddings and a bottom network that all tasks share, and one tower per task (Caruana, 1997).

    The one fork takes the output of the bottom, shape [B, bottom[-1]].

    Args:
        schema: the features and the tasks.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        embedding_dim: width of one categorical feature's embedding.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        bottom: widths of the shared layers.
        tower: widths of each tower's hidden layers.
        sparse: give the embedding table sparse gradients.

    Example:
        >>> import torch
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> model = SharedBottom(Schema([Categorical("user", 9)], [], [Task("click"), Task("like")]))
        >>> click, like = model(torch.tensor([[3], [5]]), torch.empty(2, 0))
        >>> click.shape
        torch.Size([2])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        fork: ForkFactory | None = None,
        embedding_dim: int = 8,
        interaction: str = "none",
        bottom: Sequence[int] = (128, 64),
        tower: Sequence[int] = (16,),
        sparse: bool = False,
    ) -> None:
        super().__init__(schema)
        self.fork = self.new_fork(fork)
        self.embedding = build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse)
        self.bottom = layers.mlp(self.embedding.width, bottom)
        width = (self.embedding.width, *bottom)[-1]
        self.heads = nn.ModuleList(layers.tower(width, tower) for _ in schema.tasks)

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        branches = self.branches(self.fork, self.bottom(self.embedding(categorical, numeric)))
        return tuple(head(branch) for head, branch in zip(self.heads, branches, strict=True))
