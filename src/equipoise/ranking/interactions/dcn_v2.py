"""DCN-v2: layers that multiply the features with a linear map of what came before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equipoise.ranking.interactions.interaction import Interaction
from equipoise.schema import Schema

__all__ = ["CrossLayer", "DCNv2"]


class DCNv2(Interaction):
    """Cross layers over all embeddings and numbers, each of which raises the order of the interactions by one.

    Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems",
    WWW 2021. With x_0 the embeddings and numbers side by side, layer l is, by equation 1 and with a rank r by
    equation 2::

        x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l
        x_{l+1} = x_0 ⊙ (U_l V_lᵀ x_l + b_l) + x_l        U_l, V_l of r columns

    The deep layers are those of the model above (the stacked structure of figure 1). The mixture of low-rank experts
    of section 3.4 is left out.

    Args:
        schema: the features.
        dim: width of one feature's embedding.
        layers: how many cross layers.
        rank: the rank r of their maps; 0: full.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: ``layers`` is under 1, or ``rank`` under 0.

    Example:
        >>> from equipoise.schema import Categorical, Numeric, Task
        >>> schema = Schema([Categorical("user", 9), Categorical("item", 5)], [Numeric("age")], [Task("buy")])
        >>> DCNv2(schema, 4)(torch.tensor([[8, 0]]), torch.ones(1, 1)).shape
        torch.Size([1, 9])
    """

    def __init__(self, schema: Schema, dim: int, *, layers: int = 2, rank: int = 0, sparse: bool = False) -> None:
        super().__init__(schema, dim, sparse=sparse)
        if layers < 1 or rank < 0:
            raise ValueError(f"DCN-v2 needs at least 1 layer and a rank from 0 up, found {layers} and {rank}.")
        self.width = self.features.width
        self.layers = nn.ModuleList(CrossLayer(self.width, rank) for _ in range(layers))

    def interact(self, fields: Tensor, numbers: Tensor, /) -> Tensor:
        """Return the output of the last cross layer."""
        inputs = torch.cat((fields.flatten(1), numbers), dim=1)
        crossed = inputs
        for layer in self.layers:
            crossed = layer(inputs, crossed)
        return crossed


class CrossLayer(nn.Module):
    """One cross layer: the input times a linear map of the layer below, and the layer below.

    Example:
        >>> CrossLayer(6, rank=2)(torch.ones(3, 6), torch.ones(3, 6)).shape
        torch.Size([3, 6])
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.map: nn.Module = nn.Linear(width, width)
        if rank:
            self.map = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))

    def forward(self, inputs: Tensor, below: Tensor) -> Tensor:
        """Take x_0 and x_l, return x_{l+1}, each of shape [B, width]."""
        crossed: Tensor = torch.addcmul(below, inputs, self.map(below))
        return crossed
