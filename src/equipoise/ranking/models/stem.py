"""Shared and task-specific embeddings: each task has its own table and experts, and reads the others' experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.ranking import layers
from equipoise.ranking.embedding import Input
from equipoise.ranking.interactions import build_input
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.schema import Schema

__all__ = ["STEM"]


class STEM(RankingModel):
    """An embedding table and experts that all tasks share, and a table, experts, a gate and a tower for each task.

    Su et al., "STEM: Unleashing the Power of Embeddings for Multi-Task Recommendation", AAAI 2024, DOI
    10.1609/aaai.v38i8.28749: STEM-Net with its "All Forward Task-specific Backward" gates. With x_s and x_k the
    embeddings from the shared table and from that of task k, E_s and E_k the experts on them, and sg a stop of the
    gradient::

        z_k = softmax(W_k (x_k + x_s)) [E_k(x_k), sg(E_j(x_j)) for the other tasks j, E_s(x_s)]
        logit_k = h_k(z_k)

    A task reads the experts of all tasks, and trains its own and the shared ones.

    **What is shared.** The shared table and the shared experts. Each task's table and experts are its own: the stopped
    gradient keeps the other tasks' losses from them.

    **Where the fork stands.** One fork takes what tasks read of the shared part, as one tuple: the shared experts'
    outputs, shape [B, shared_experts, expert[-1]], and x_s, shape [B, width], which the gates read. What a task reads
    of the others' experts needs no fork, as no gradient flows there.

    Deviations: gates are linear maps without bias, without a hidden layer; no dropout and no batch normalisation.

    Args:
        schema: the features and the tasks.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        embedding_dim: width of one categorical feature's embedding, in each table.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        shared_experts: how many shared experts.
        task_experts: how many experts each task has.
        expert: widths of each expert's layers.
        tower: widths of each tower's hidden layers.
        sparse: give the embedding tables sparse gradients.

    Raises:
        ValueError: ``shared_experts`` or ``task_experts`` is under 1.

    Example:
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> model = STEM(Schema([Categorical("user", 9)], [], [Task("click"), Task("like")]))
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
        shared_experts: int = 1,
        task_experts: int = 1,
        expert: Sequence[int] = (128, 64),
        tower: Sequence[int] = (16,),
        sparse: bool = False,
    ) -> None:
        super().__init__(schema)
        for what, count in {"shared expert": shared_experts, "expert per task": task_experts}.items():
            if count < 1:
                raise ValueError(f"STEM needs at least 1 {what}, found {count}.")
        self.fork = self.new_fork(fork)
        self.embedding = build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse)
        inputs = self.embedding.width
        self.experts = layers.Experts(shared_experts, inputs, expert)
        experts = shared_experts + task_experts * len(schema.tasks)
        self.heads = nn.ModuleList(
            _Head(
                build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse),
                layers.Experts(task_experts, inputs, expert),
                layers.gate(inputs, experts),
                layers.tower((inputs, *expert)[-1], tower),
            )
            for _ in schema.tasks
        )

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        shared = self.embedding(categorical, numeric)
        # A view is a node of its own beside the experts, see MMoE.
        branches = self.branches(self.fork, (self.experts(shared), shared.view_as(shared)))
        of_tasks = [head.extract(categorical, numeric) for head in self.heads]  # type: ignore[operator]
        others = [outputs.detach() for _, outputs in of_tasks]
        logits = []
        for task, (head, (inputs, own), branch) in enumerate(zip(self.heads, of_tasks, branches, strict=True)):
            shared_outputs, shared_inputs = branch
            outputs = torch.cat([*others[:task], own, *others[task + 1 :], shared_outputs], dim=1)
            logits.append(head(inputs + shared_inputs, outputs))
        return tuple(logits)


class _Head(nn.Module):
    """The part of one task alone: its table and its experts, and its gate and its tower over the experts of all."""

    def __init__(self, embedding: Input, experts: layers.Experts, gate: nn.Linear, tower: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.experts = experts
        self.gate = gate
        self.tower = tower

    def extract(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, Tensor]:
        """Return the task's embedding, shape [B, width], and its experts' outputs, shape [B, task experts, width]."""
        inputs = self.embedding(categorical, numeric)
        return inputs, self.experts(inputs)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return logits, shape [B], from the gate's input and the outputs of the experts that the task reads."""
        logits: Tensor = self.tower(layers.mixture(self.gate(inputs), outputs))
        return logits
