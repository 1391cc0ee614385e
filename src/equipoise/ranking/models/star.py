"""Star topology: each scenario has weights of its own, multiplied with weights that all scenarios share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from equipoise.ranking import layers
from equipoise.ranking.interactions import build_input
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.schema import Categorical, Schema

__all__ = ["STAR"]


class STAR(RankingModel):
    r"""Layers with weights for all scenarios times weights for the row's scenario, such as the surface of an app.

    Sheng et al., "One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction", CIKM
    2021, DOI 10.1145/3459637.3481941, section 3. With p the scenario of a row, ⊙ the product of elements, and μ_p,
    σ_p the statistics of the batch's rows of scenario p::

        PN(x) = (γ ⊙ γ_p) (x − μ_p) / √(σ_p² + ε) + β + β_p                       partitioned normalisation
        FC(x) = ReLU((W ⊙ W_p) x + b + b_p)                                      star topology
        logit = s_m + s_a,   s_a = auxiliary network of the embedding, in which the scenario is one feature

    The paper has one task. Here the tasks share PN and the layers ``bottom``; each has star layers ``tower``, of which
    the last gives s_m, and an auxiliary network. With one task the model is the paper's.

    **What is shared.** The embedding, PN and ``bottom``, with the parameters of all scenarios. A scenario's parameters
    are shared by the tasks, like all others: the fork balances tasks, not scenarios.

    **Where the fork stands.** One fork takes the output of ``bottom``, shape [B, bottom[-1]], and the embedding, shape
    [B, width], which the auxiliary networks read.

    In eval mode PN uses running statistics; those of a scenario that training never saw are mean 0 and variance 1. A
    batch mixes scenarios, where the paper draws batches of one: a layer computes the outputs for all of them and keeps
    that of the row's, so its cost grows with their number. Use a feature with few values.

    Deviations: the scenarios' weights start at 1 and their biases at 0, so all begin as one network.

    Args:
        schema: the features and the tasks.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        scenario: the name of a categorical feature with one id per row. Id 0, missing or unseen, is a scenario, too.
        embedding_dim: width of one categorical feature's embedding.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        bottom: widths of the star layers that tasks share.
        tower: widths of the hidden star layers of each task.
        auxiliary: widths of each auxiliary network's hidden layers.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: ``scenario`` is no such feature.

    Example:
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> schema = Schema([Categorical("user", 9), Categorical("surface", 3)], [], [Task("click"), Task("like")])
        >>> model = STAR(schema, scenario="surface")
        >>> click, like = model(torch.tensor([[3, 1], [5, 2]]), torch.empty(2, 0))
        >>> click.shape
        torch.Size([2])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        fork: ForkFactory | None = None,
        scenario: str,
        embedding_dim: int = 8,
        interaction: str = "none",
        bottom: Sequence[int] = (128, 64),
        tower: Sequence[int] = (16,),
        auxiliary: Sequence[int] = (16,),
        sparse: bool = False,
    ) -> None:
        super().__init__(schema)
        known = {feature.name: feature for feature in schema.categorical if isinstance(feature, Categorical)}
        if scenario not in known:
            raise ValueError(
                f"STAR: expected as scenario a categorical feature with one id per row, out of "
                f"{', '.join(known) or 'none'}; found {scenario!r}."
            )
        self.scenario_column = schema.categorical_columns.index(scenario)
        count = known[scenario].cardinality
        self.fork = self.new_fork(fork)
        self.embedding = build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse)
        inputs = self.embedding.width
        self.norm = PartitionedNorm(inputs, count)
        self.bottom = _StarLayers(inputs, bottom, count)
        width = (inputs, *bottom)[-1]
        self.heads = nn.ModuleList(
            _Head(_StarLayers(width, tower, count, last=1), layers.tower(inputs, auxiliary)) for _ in schema.tasks
        )

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        inputs = self.embedding(categorical, numeric)
        ids = categorical[:, self.scenario_column, None]
        ids = torch.where((ids >= 0) & (ids < self.norm.scenarios), ids, 0)
        members = (ids == torch.arange(self.norm.scenarios, device=ids.device)).to(inputs.dtype)
        # A view is a node of its own beside the norm, see MMoE.
        read = (self.bottom(self.norm(inputs, members), members), inputs.view_as(inputs))
        branches = self.branches(self.fork, read)
        return tuple(head(*branch, members) for head, branch in zip(self.heads, branches, strict=True))


class PartitionedNorm(nn.Module):
    """Batch normalisation with statistics, a scale and a shift for each scenario.

    Args:
        width: columns of its input.
        scenarios: how many scenarios there are.
        momentum: share of a batch in the running statistics.
        eps: added to variances.

    Attributes:
        running_mean, running_var: of each scenario, shape [scenarios, width].
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, scenarios: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.scenarios, self.momentum, self.eps = scenarios, momentum, eps
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.scenario_scale = nn.Parameter(torch.ones(scenarios, width))
        self.scenario_shift = nn.Parameter(torch.zeros(scenarios, width))
        self.register_buffer("running_mean", torch.zeros(scenarios, width))
        self.register_buffer("running_var", torch.ones(scenarios, width))

    def forward(self, inputs: Tensor, members: Tensor) -> Tensor:
        """Normalise rows, shape [B, width]; ``members``: 1 at each row's scenario, else 0, shape [B, scenarios]."""
        with torch.autocast(inputs.device.type, enabled=False):  # sums over rows, as in batch normalisation
            inputs, members = inputs.to(self.scale), members.to(self.scale)
            mean, var = self.running_mean, self.running_var
            centred = inputs - members @ mean
            if self.training:
                rows = members.sum(0).unsqueeze(1)
                mean = members.t() @ inputs / rows.clamp(min=1)
                centred = inputs - members @ mean
                var = members.t() @ centred.square() / rows.clamp(min=1)
                self._follow(mean.detach(), var.detach(), rows)
            normalised = centred * (members @ (var + self.eps).rsqrt())
            scale = self.scale * (members @ self.scenario_scale)
            return normalised * scale + self.shift + members @ self.scenario_shift

    def _follow(self, mean: Tensor, var: Tensor, rows: Tensor) -> None:
        """Move the running statistics towards those of the batch: means from one row, variances from two."""
        unbiased = var * rows / (rows - 1).clamp(min=1)
        self.running_mean.lerp_(mean, self.momentum * (rows > 0).to(mean))
        self.running_var.lerp_(unbiased, self.momentum * (rows > 1).to(mean))


class _StarLinear(nn.Module):
    """A linear layer: its weight is a shared one times that of the row's scenario, its bias the sum of both."""

    def __init__(self, inputs: int, width: int, scenarios: int) -> None:
        super().__init__()
        self.shared = nn.Linear(inputs, width)
        self.scenario_weight = nn.Parameter(torch.ones(scenarios, width, inputs))
        self.scenario_bias = nn.Parameter(torch.zeros(scenarios, width))

    def forward(self, inputs: Tensor, members: Tensor) -> Tensor:
        weights: Tensor = self.shared.weight * self.scenario_weight
        every = (inputs @ weights.flatten(0, 1).t()).view(-1, *weights.shape[:2])  # [B, scenarios, width]
        own = (every * members.unsqueeze(2)).sum(1)
        return own + self.shared.bias + members @ self.scenario_bias


class _StarLayers(nn.ModuleList):
    """Star layers, each followed by a ReLU, and with ``last`` one more without it; takes [B, inputs]."""

    def __init__(self, inputs: int, widths: Sequence[int], scenarios: int, *, last: int = 0) -> None:
        widths = (*widths, last) if last else tuple(widths)
        if any(width < 1 for width in widths):
            raise ValueError(f"Widths of layers must be at least 1, found {widths}.")
        super().__init__(_StarLinear(before, after, scenarios) for before, after in pairwise((inputs, *widths)))
        self.hidden = len(widths) - bool(last)

    def forward(self, rows: Tensor, members: Tensor) -> Tensor:
        for place, layer in enumerate(self):
            rows = layer(rows, members)
            if place < self.hidden:
                rows = rows.relu()
        return rows


class _Head(nn.Module):
    """The star layers and the auxiliary network of one task."""

    def __init__(self, tower: _StarLayers, auxiliary: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.auxiliary = auxiliary

    def forward(self, shared: Tensor, inputs: Tensor, members: Tensor) -> Tensor:
        """Return logits, shape [B]."""
        logits: Tensor = self.tower(shared, members).squeeze(1) + self.auxiliary(inputs)
        return logits
