"""Multi-gate mixture of experts: shared experts, and a gate and a tower for each task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from equipoise.ranking import layers
from equipoise.ranking.interactions import build_input
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.schema import Schema

__all__ = ["MMoE"]


class MMoE(RankingModel):
    """Embeddings and experts that all tasks share, and for each task a softmax gate over the experts and a tower.

    Task k's logit is h_k(Σ_e g_k(x)_e f_e(x)) with g_k(x) = softmax(W_k x): equations 6 to 8 of Ma et al.,
    "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018.
    Embeddings and experts f are shared; gates W and towers h belong to the tasks. So one fork takes the two
    things that tasks read, as one tuple: the experts' outputs, shape [B, experts, expert[-1]], and the gates'
    input x, shape [B, width of the embedding]. A fork around the experts alone would let the gates' gradients
    reach the embedding unweighted.

    Args:
        schema: the features and the tasks.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        embedding_dim: width of one categorical feature's embedding.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        experts: how many experts.
        expert: widths of each expert's layers.
        tower: widths of each tower's hidden layers.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: ``experts`` is under 1.

    Example:
        >>> import torch
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> model = MMoE(Schema([Categorical("user", 9)], [], [Task("click"), Task("like")]), experts=2)
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
        experts: int = 4,
        expert: Sequence[int] = (128, 64),
        tower: Sequence[int] = (16,),
        sparse: bool = False,
    ) -> None:
        super().__init__(schema)
        self.fork = self.new_fork(fork)
        if experts < 1:
            raise ValueError(f"MMoE needs at least 1 expert, found {experts}.")
        self.embedding = build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse)
        inputs = self.embedding.width
        self.experts = layers.Experts(experts, inputs, expert)
        self.heads = nn.ModuleList(
            _GatedTower(layers.tower((inputs, *expert)[-1], tower), layers.gate(inputs, experts)) for _ in schema.tasks
        )

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        inputs = self.embedding(categorical, numeric)
        # The view is a node of its own beside the experts: a gradient with respect to `inputs` itself would hold that
        # of the experts, too, and count it twice.
        branches = self.branches(self.fork, (self.experts(inputs), inputs.view_as(inputs)))
        return tuple(head(branch) for head, branch in zip(self.heads, branches, strict=True))


class _GatedTower(nn.Module):
    """The gate and the tower of one task."""

    def __init__(self, tower: nn.Module, gate: nn.Linear) -> None:
        super().__init__()
        self.gate = gate
        self.tower = tower

    def forward(self, branch: Sequence[Tensor]) -> Tensor:
        outputs, inputs = branch
        logits: Tensor = self.tower(layers.mixture(self.gate(inputs), outputs))
        return logits
