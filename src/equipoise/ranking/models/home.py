"""Hierarchy of multi-gate experts: a level for groups of tasks, then a level for the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.ranking import layers
from equipoise.ranking.interactions import build_input
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.schema import Schema

__all__ = ["HoME"]


class HoME(RankingModel):
    r"""Experts for all tasks, for a group of tasks and for one task, over a level of groups and a level of tasks.

    Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou", KDD 2025, arXiv
    2408.05430, section 3. With x the embedding, Γ the groups of tasks, and E the outputs of a set of experts::

        z^γ = mix(x; E^γ(x), E^s(x)) + self(x; E^γ(x))                          meta level, each group γ
        z^s = mix(x; E^γ(x) for γ in Γ, E^s(x)) + self(x; E^s(x))               meta level, all groups
        u   = [z^γ, z^s]
        t_k = mix(u; F^k(z^γ), F^γ(z^γ), F^s(z^s)) + self(u; F^k(z^γ))          task level, task k in γ
        logit_k = h_k(t_k)

    mix weighs experts by a softmax gate. self, the self-gate, is a second gate on the set's own experts: a sigmoid for
    one expert, a softmax for more. An expert is a stack of Swish(BatchNorm(W · + b)), and reads its input times its
    feature gate, 2σ(x B A) with B of rank ``gate_rank``.

    **What is shared.** The meta experts of a group are read by z^s, so all tasks reach them. A group's gates at the
    meta level and its experts F^γ serve the tasks of that group: they are shared by these tasks, and if the group has
    one task, that task's own.

    **Where the fork stands.** One fork takes all that tasks read of the shared part, as one dict: z^s and F^s(z^s); for
    each group of several tasks z^γ and F^γ(z^γ); for each group of one task x, E^γ(x) and E^s(x). A task reads its own
    group's part of its branch. Tasks of different groups meet at z^s and F^s(z^s).

    Deviations: gates are linear maps without bias, and read what their experts read. A batch of one row is normalised
    by the running statistics.

    Args:
        schema: the features and the tasks.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        embedding_dim: width of one categorical feature's embedding.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        groups: the groups of tasks: names with "," between them, groups with "/"; each task occurs once. Empty: a group
            for each task that is not nested, with all that is nested in it.
        experts: how many experts each set has: shared, of a group, of a task.
        expert: widths of each expert's layers, at both levels.
        gate_rank: rank of the feature gates.
        tower: widths of each tower's hidden layers.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: ``groups`` does not name each task once, or ``experts`` or ``gate_rank`` is under 1.

    Example:
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> tasks = [Task("click"), Task("like"), Task("long_view")]
        >>> model = HoME(Schema([Categorical("user", 9)], [], tasks), groups="click, like / long_view")
        >>> click, like, long_view = model(torch.tensor([[3], [5]]), torch.empty(2, 0))
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
        groups: str = "",
        experts: int = 2,
        expert: Sequence[int] = (64,),
        gate_rank: int = 4,
        tower: Sequence[int] = (16,),
        sparse: bool = False,
    ) -> None:
        super().__init__(schema)
        for what, count in {"expert in each set": experts, "rank of a feature gate": gate_rank}.items():
            if count < 1:
                raise ValueError(f"HoME needs at least 1 {what}, found {count}.")
        self.groups = _groups_of(schema, groups)
        self._group_of = {task: place for place, group in enumerate(self.groups) for task in group}
        self.fork = self.new_fork(fork)
        self.embedding = build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse)
        inputs = self.embedding.width
        width = (inputs, *expert)[-1]

        def expert_set(inputs: int) -> _ExpertSet:
            return _ExpertSet(experts, inputs, expert, gate_rank)

        def group_part() -> _GroupPart:
            return _GroupPart(_Mixer(inputs, experts, 2 * experts), expert_set(width))

        self.meta_experts = expert_set(inputs)
        self.meta_group_experts = nn.ModuleList(expert_set(inputs) for _ in self.groups)
        self.meta_mixer = _Mixer(inputs, experts, (len(self.groups) + 1) * experts)
        self.shared_experts = expert_set(width)
        self.group_parts = nn.ModuleDict(
            {str(place): group_part() for place, group in enumerate(self.groups) if len(group) > 1}
        )
        self.heads = nn.ModuleList(
            _Head(
                None if str(self._group_of[task]) in self.group_parts else group_part(),
                expert_set(width),
                _Mixer(2 * width, experts, 3 * experts),
                layers.tower(width, tower),
            )
            for task in range(len(schema.tasks))
        )

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        inputs = self.embedding(categorical, numeric)
        shared = self.meta_experts(inputs)
        of_groups = [experts(inputs) for experts in self.meta_group_experts]
        meta = self.meta_mixer(inputs, shared, of_groups)
        read: dict[str, list[Tensor]] = {"all": [meta, self.shared_experts(meta)]}
        for place, outputs in enumerate(of_groups):
            if str(place) in self.group_parts:
                read[str(place)] = self.group_parts[str(place)](inputs, outputs, shared)
            else:
                read[str(place)] = [inputs, outputs, shared]
        # Views are nodes of their own beside what the shared part goes on with, see MMoE.
        views = {part: [tensor.view_as(tensor) for tensor in tensors] for part, tensors in read.items()}
        branches = self.branches(self.fork, views)
        return tuple(
            head(branch[str(self._group_of[task])], *branch["all"])
            for task, (head, branch) in enumerate(zip(self.heads, branches, strict=True))
        )


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of one row, too."""

    def forward(self, rows: Tensor) -> Tensor:
        if not self.training or len(rows) > 1:
            return super().forward(rows)
        return functional.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class _FeatureGate(nn.Module):
    """Scales the columns of its input by 2σ(x B A)."""

    def __init__(self, inputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, inputs, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (2 * torch.sigmoid(self.up(self.down(inputs))))


class _ExpertSet(nn.ModuleList):
    """Experts with feature gates that read the same input; takes [B, inputs], returns [B, count, widths[-1]]."""

    def __init__(self, count: int, inputs: int, widths: Sequence[int], rank: int) -> None:
        def expert() -> nn.Sequential:
            parts: list[nn.Module] = [_FeatureGate(inputs, rank)]
            for before, after in pairwise((inputs, *widths)):
                parts += [nn.Linear(before, after), _BatchNorm(after), nn.SiLU()]
            return nn.Sequential(*parts)

        super().__init__(expert() for _ in range(count))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([expert(inputs) for expert in self], dim=1)


class _Mixer(nn.Module):
    """A gate over a set of experts and others, and the self-gate of the set."""

    def __init__(self, inputs: int, own: int, every: int) -> None:
        super().__init__()
        self.gate = layers.gate(inputs, every)
        self.self_gate = layers.gate(inputs, own)

    def forward(self, inputs: Tensor, own: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return shape [B, width] from the gates' input and the outputs of experts."""
        mixed = layers.mixture(self.gate(inputs), torch.cat([own, *others], dim=1))
        scores = self.self_gate(inputs)
        if own.shape[1] == 1:
            return mixed + torch.sigmoid(scores) * own[:, 0]
        return mixed + layers.mixture(scores, own)


class _GroupPart(nn.Module):
    """The part that the tasks of one group alone read: its gates at the meta level, its experts at the task level."""

    def __init__(self, mixer: _Mixer, experts: _ExpertSet) -> None:
        super().__init__()
        self.mixer = mixer
        self.experts = experts

    def forward(self, inputs: Tensor, own: Tensor, shared: Tensor) -> list[Tensor]:
        """Return z^γ and F^γ(z^γ) from the embedding and the outputs of the group's and the shared meta experts."""
        meta = self.mixer(inputs, own, [shared])
        return [meta, self.experts(meta)]


class _Head(nn.Module):
    """The part of one task alone, with its group's if it is the only task there."""

    def __init__(self, group_part: _GroupPart | None, experts: _ExpertSet, mixer: _Mixer, tower: nn.Module) -> None:
        super().__init__()
        self.group_part = group_part
        self.experts = experts
        self.mixer = mixer
        self.tower = tower

    def forward(self, of_group: list[Tensor], meta: Tensor, shared: Tensor) -> Tensor:
        """Return logits, shape [B], from the group's part of the branch, z^s and F^s(z^s)."""
        group_meta, group_outputs = of_group if self.group_part is None else self.group_part(*of_group)
        inputs = torch.cat((group_meta, meta), dim=1)
        logits: Tensor = self.tower(self.mixer(inputs, self.experts(group_meta), [group_outputs, shared]))
        return logits


def _groups_of(schema: Schema, stated: str) -> list[list[int]]:
    """Return the positions of the tasks of each group."""
    names = list(schema.task_names)
    if stated:
        groups = [[name.strip() for name in group.split(",")] for group in stated.split("/")]
        if sorted(name for group in groups for name in group) != sorted(names):
            raise ValueError(
                f"HoME: expected groups that name each task once, such as {' / '.join(names)!r}; found {stated!r}."
            )
        return [[names.index(name) for name in group] for group in groups]
    trees: dict[str, list[int]] = {}
    for place, task in enumerate(schema.tasks):
        root = task
        while root.after:
            root = schema.task(root.after)
        trees.setdefault(root.name, []).append(place)
    return list(trees.values())
