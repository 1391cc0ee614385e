"""Adaptive information transfer: the network of a nested task reads that of its parent through an attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.ranking import layers
from equipoise.ranking.interactions import build_input
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.ranking.models.nested_tasks import parents_of
from equipoise.schema import Schema

__all__ = ["AITM"]


class AITM(RankingModel):
    r"""Embeddings that all tasks share, a network per task, and a transfer from each task to those nested in it.

    Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning in
    Targeted Display Advertising", KDD 2021, DOI 10.1145/3447548.3467071, section 3. With x the embedding, f_t and
    h_t networks of task t, s the task that t is nested in, and V, Q, K linear maps without bias::

        q_t = f_t(x),   p_t = g_t(z_s) = ReLU(A z_s + b)
        z_t = Σ w_u V(u) over u in {p_t, q_t},   w = softmax of ⟨Q(u), K(u)⟩ / √k;   z_t = q_t if t is not nested
        logit_t = h_t(z_t)

    **Calibrator.** A probability over all rows should not exceed that of the parent. The paper adds to the loss
    α max(ŷ_t − ŷ_s, 0), a mean over rows. Here task t has it with ŷ_s as a constant, and task s with ŷ_t as a constant:
    the gradients are the paper's, and no loss reaches the other task's h. It holds for binary tasks with
    ``over="all"``.

    **What is shared.** The loss of a nested task reaches f of its parent. A task with nested tasks has only h
    of its own; a task in which nothing is nested has f, g, V, Q and K, too.

    **Where the fork stands.** One fork takes all that tasks read of the shared part, as one tuple: z of each task with
    nested tasks, shape [B, bottom[-1]], and the embedding, shape [B, width], for the networks f behind the fork.
    Gradients of tasks that read different ones of these tensors are orthogonal at the fork: it sees their lengths, and
    their conflict only where both read the same tensor. PUB, which looks at parameters, sees all of it.

    Deviations: no dropout. Each nested task has its own V, Q and K. The authors' code takes ⟨Q(u), V(u)⟩ for the
    weights and never uses K; here it is the paper's formula, as in MTReclib.

    Args:
        schema: the features and the tasks; at least one is nested.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        embedding_dim: width of one categorical feature's embedding; 5 in the authors' code.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        bottom: widths of the layers of each f; 128-64-32 in the authors' code.
        tower: widths of the hidden layers of each h; none in the authors' code.
        calibration: α; 0.6 in the paper.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: no task is nested, or ``calibration`` is negative.

    Example:
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> tasks = [Task("click"), Task("conversion", after="click", over="all")]
        >>> model = AITM(Schema([Categorical("user", 9)], [], tasks))
        >>> click, conversion = model(torch.tensor([[3], [5]]), torch.empty(2, 0))
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
        bottom: Sequence[int] = (128, 64, 32),
        tower: Sequence[int] = (),
        calibration: float = 0.6,
        sparse: bool = False,
    ) -> None:
        super().__init__(schema)
        if not calibration >= 0:
            raise ValueError(f"AITM: expected a calibration from 0 up, found {calibration!r}.")
        self.parents = parents_of(schema, "AITM")
        self.calibration = calibration
        self.fork = self.new_fork(fork)
        self.embedding = build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse)
        inputs = self.embedding.width
        width = (inputs, *bottom)[-1]
        columns = [_Column(inputs, bottom, nested=parent is not None) for parent in self.parents]
        self.shared_columns = nn.ModuleDict(
            {str(task): column for task, column in enumerate(columns) if task in self.parents}
        )
        self.heads = nn.ModuleList(
            _Head(None if task in self.parents else column, layers.tower(width, tower))
            for task, column in enumerate(columns)
        )
        self._outputs: tuple[Tensor, ...] = ()

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        inputs = self.embedding(categorical, numeric)
        shared: dict[str, Tensor] = {}
        for task in self._parents_first():
            parent = self.parents[task]
            shared[str(task)] = self.shared_columns[str(task)](inputs, None if parent is None else shared[str(parent)])
        # Views are nodes of their own beside what the shared part goes on with, see MMoE.
        read = {task: tensor.view_as(tensor) for task, tensor in shared.items()}
        branches = self.branches(self.fork, (read, inputs.view_as(inputs)))
        outputs = tuple(
            head(branch[0].get(str(task)), branch[1], branch[0].get(str(parent)))
            for task, (head, branch, parent) in enumerate(zip(self.heads, branches, self.parents, strict=True))
        )
        self._outputs = outputs if self.training else ()
        return outputs

    def auxiliary_losses(self, labels: Tensor, /) -> Mapping[str, Tensor] | None:
        """Return the calibrator's terms of each row, by task; see :class:`RankingModel`."""
        outputs, self._outputs = self._outputs, ()
        found: dict[str, Tensor] = {}
        if not outputs or not self.calibration:
            return found
        chances = [output.to(torch.promote_types(output.dtype, torch.float32)).sigmoid() for output in outputs]
        for task, parent in zip(self.schema.tasks, self.parents, strict=True):
            if parent is None or not task.binary or task.over == "parent":
                continue
            above, below = chances[self.schema.task_names.index(task.name)], chances[parent]
            for name, term in (
                (task.name, functional.relu(above - below.detach())),
                (task.after, functional.relu(above.detach() - below)),
            ):
                found[name] = found.get(name, 0.0) + self.calibration * term
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Tensors of a forward pass cannot be copied.
        return self.__dict__ | {"_outputs": ()}

    def _parents_first(self) -> list[int]:
        """Return the tasks with nested tasks, each after the one that it is nested in."""

        def depth(task: int) -> int:
            parent = self.parents[task]
            return 0 if parent is None else 1 + depth(parent)

        return sorted((int(task) for task in self.shared_columns), key=depth)


class _Column(nn.Module):
    """The network f of one task, and for a nested task its transfer g and its attention."""

    def __init__(self, inputs: int, widths: Sequence[int], *, nested: bool) -> None:
        super().__init__()
        width = (inputs, *widths)[-1]
        self.tower = layers.mlp(inputs, widths)
        self.transfer = layers.mlp(width, (width,)) if nested else None
        self.attention = _Attention(width) if nested else None

    def forward(self, inputs: Tensor, parent: Tensor | None) -> Tensor:
        """Return z, shape [B, width], from the embedding and the parent's z."""
        own: Tensor = self.tower(inputs)
        if self.transfer is None or self.attention is None:
            return own
        found: Tensor = self.attention(torch.stack((self.transfer(parent), own), dim=1))
        return found


class _Attention(nn.Module):
    """Mixes vectors by how well each agrees with itself in two projections; takes [B, n, width], returns [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.scale = 1 / math.sqrt(width)

    def forward(self, vectors: Tensor) -> Tensor:
        scores = (self.query(vectors) * self.key(vectors)).sum(dim=2) * self.scale
        return layers.mixture(scores, self.value(vectors))


class _Head(nn.Module):
    """The last network of one task, and its column if no other task reads it."""

    def __init__(self, column: _Column | None, last: nn.Module) -> None:
        super().__init__()
        self.column = column
        self.last = last

    def forward(self, shared: Tensor | None, inputs: Tensor, parent: Tensor | None) -> Tensor:
        """Return logits, shape [B]; ``shared``: z of a shared column, ``parent``: z of the parent task."""
        logits: Tensor = self.last(shared if self.column is None else self.column(inputs, parent))
        return logits
