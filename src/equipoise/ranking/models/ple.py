"""Progressive layered extraction: shared experts and experts of each task, over several levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equipoise.ranking import layers
from equipoise.ranking.interactions import build_input
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.schema import Schema

__all__ = ["PLE"]


class PLE(RankingModel):
    """Shared experts and experts of each task, mixed by gates over several levels, and one tower per task.

    Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
    Recommendations", RecSys 2020, DOI 10.1145/3383313.3412236, sections 4.1 and 4.2. With x the embedding, N levels,
    g^{k,0} = g^{s,0} = x, and E the outputs of the experts of task k or of the shared ones (s) at level j::

        g^{k,j} = softmax(W^{k,j} g^{k,j-1}) [E^{k,j}(g^{k,j-1}), E^{s,j}(g^{s,j-1})]               task k's gate
        g^{s,j} = softmax(W^{s,j} g^{s,j-1}) [E^{1,j}(g^{1,j-1}), ..., E^{s,j}(g^{s,j-1})]  shared gate, j < N
        logit_k = h_k(g^{k,N})

    One level is the paper's Customized Gate Control (CGC). Experts and towers are ReLU networks; gates have no bias.

    **What is shared.** An expert "of task k" below the top level is not task k's own: the shared gate reads it, so the
    losses of all tasks reach it. To task k alone belong its tower, its experts and its gate at the top level, and its
    gate at the level below, whose mixture nobody else reads. All else is shared.

    **Where the fork stands.** One fork hands each task everything that it reads of the shared part: the outputs of
    the top level's shared experts, and of the level below the experts' outputs and the gates' inputs. Every path from
    a loss to a shared parameter crosses it once, in the branch of that loss's task. A fork at each level is wrong: what
    comes back through task k's branch at a lower level mixes the gradients of all tasks, by way of the shared gate,
    and is weighted a second time. See ``docs/where-to-fork.md``.

    Args:
        schema: the features and the tasks.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        embedding_dim: width of one categorical feature's embedding.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        levels: how many levels, N.
        shared_experts: how many shared experts at each level.
        task_experts: how many experts each task has at each level.
        expert: widths of each expert's layers.
        tower: widths of each tower's hidden layers.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: ``levels``, ``shared_experts`` or ``task_experts`` is under 1.

    Example:
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> model = PLE(Schema([Categorical("user", 9)], [], [Task("click"), Task("like")]), levels=2)
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
        levels: int = 2,
        shared_experts: int = 2,
        task_experts: int = 1,
        expert: Sequence[int] = (64,),
        tower: Sequence[int] = (16,),
        sparse: bool = False,
    ) -> None:
        super().__init__(schema)
        counts = {"level": levels, "shared expert": shared_experts, "expert per task": task_experts}
        for what, count in counts.items():
            if count < 1:
                raise ValueError(f"PLE needs at least 1 {what}, found {count}.")
        self.fork = self.new_fork(fork)
        self.embedding = build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse)
        widths = [self.embedding.width, *[(self.embedding.width, *expert)[-1]] * levels]  # of g^{k,j}, j = 0 ... N

        def column(level: int) -> _Column:
            gate_below = None if level == 1 else layers.gate(widths[level - 2], task_experts + shared_experts)
            return _Column(gate_below, layers.Experts(task_experts, widths[level - 1], expert))

        self.lower_levels = nn.ModuleList(
            _LowerLevel(
                [column(level) for _ in schema.tasks],
                layers.Experts(shared_experts, widths[level - 1], expert),
                layers.gate(widths[level - 1], len(schema.tasks) * task_experts + shared_experts),
            )
            for level in range(1, levels)
        )
        self.top_experts = layers.Experts(shared_experts, widths[levels - 1], expert)
        self.heads = nn.ModuleList(
            _Head(
                column(levels),
                layers.gate(widths[levels - 1], task_experts + shared_experts),
                layers.tower(widths[levels], tower),
            )
            for _ in schema.tasks
        )

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        shared = self.embedding(categorical, numeric)
        read = _Read([shared], [], [])
        for level in self.lower_levels:
            read, shared = level(read, shared)
        # Views are nodes beside those that the shared part goes on with; a gradient with respect to all pieces then
        # counts every path once.
        views = _Read(*([tensor.view_as(tensor) for tensor in part] for part in read))
        branches = self.branches(self.fork, (views, self.top_experts(shared)))
        return tuple(head(task, *branch) for task, (head, branch) in enumerate(zip(self.heads, branches, strict=True)))


class _Read(NamedTuple):
    """The tensors of a level that tasks read.

    Attributes:
        inputs: the inputs of the gates, shape [B, width]: one per task, or one for all tasks at the embedding.
        task_outputs: outputs of the experts of each task, shape [B, task experts, width]; empty at the embedding.
        shared_outputs: a list of the shared experts' outputs, shape [B, shared experts, width]; empty at the embedding.
    """

    inputs: list[Tensor]
    task_outputs: list[Tensor]
    shared_outputs: list[Tensor]


class _Column(nn.Module):
    """A task's experts at one level, and the gate over the level below whose mixture they read."""

    def __init__(self, gate_below: nn.Linear | None, experts: layers.Experts) -> None:
        super().__init__()
        self.gate_below = gate_below
        self.experts = experts

    def forward(self, task: int, read: _Read) -> tuple[Tensor, Tensor]:
        """Return the input of the experts, shape [B, width], and their outputs, shape [B, task experts, width]."""
        inputs = read.inputs[task if len(read.inputs) > 1 else 0]
        if self.gate_below is not None:
            outputs = torch.cat([read.task_outputs[task], *read.shared_outputs], dim=1)
            inputs = layers.mixture(self.gate_below(inputs), outputs)
        return inputs, self.experts(inputs)


class _LowerLevel(nn.Module):
    """A level below the top, all of it shared: a column per task, the shared experts and the shared gate."""

    def __init__(self, columns: Sequence[_Column], shared_experts: layers.Experts, shared_gate: nn.Linear) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        self.shared_experts = shared_experts
        self.shared_gate = shared_gate

    def forward(self, read: _Read, shared: Tensor) -> tuple[_Read, Tensor]:
        """Take the tensors read of the level below and g^{s,j-1}; return those of this level and g^{s,j}."""
        columns = [column(task, read) for task, column in enumerate(self.columns)]
        inputs = [column_inputs for column_inputs, _ in columns] if read.task_outputs else read.inputs
        outputs, shared_outputs = [found for _, found in columns], self.shared_experts(shared)
        mixed = layers.mixture(self.shared_gate(shared), torch.cat([*outputs, shared_outputs], dim=1))
        return _Read(inputs, outputs, [shared_outputs]), mixed


class _Head(nn.Module):
    """The part of one task alone: its column and its gate at the top level, and its tower."""

    def __init__(self, column: _Column, gate: nn.Linear, tower: nn.Module) -> None:
        super().__init__()
        self.column = column
        self.gate = gate
        self.tower = tower

    def forward(self, task: int, read: _Read, top: Tensor) -> Tensor:
        """Return logits, shape [B], from the tensors read of the level below and the top shared experts' outputs."""
        inputs, outputs = self.column(task, read)
        logits: Tensor = self.tower(layers.mixture(self.gate(inputs), torch.cat([outputs, top], dim=1)))
        return logits
