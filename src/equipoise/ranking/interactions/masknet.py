"""MaskNet: blocks that weigh all features by a mask, which the example itself decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equipoise.ranking.interactions.interaction import Interaction
from equipoise.ranking.interactions.numeric_fields import NumericFields
from equipoise.schema import Schema

__all__ = ["MaskBlock", "MaskNet"]


class MaskNet(Interaction):
    """Mask blocks side by side over all embeddings, numbers among them: the parallel MaskNet.

    Wang, She and Zhang, "MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by Instance-Guided
    Mask", DLP-KDD 2021, arXiv 2102.07619. With V the embeddings of all features side by side, each block is::

        mask = W_2 relu(W_1 V + b_1) + b_2
        block = relu(LN(W_3 (mask ⊙ LN_emb(V))))

    where LN_emb normalises every embedding for itself, with a gain and a bias for each of its columns. One LN_emb
    serves all blocks. The output is that of all blocks; the feed-forward layers behind are those of the model above.
    Numbers have embeddings (:class:`NumericFields`).

    Args:
        schema: the features.
        dim: width of one feature's embedding.
        blocks: how many blocks.
        block: width of a block's output.
        reduction: how many times wider the hidden layer of the mask is than V, the paper's reduction ratio.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: a number is under 1.

    Example:
        >>> from equipoise.schema import Categorical, Numeric, Task
        >>> schema = Schema([Categorical("user", 9), Categorical("item", 5)], [Numeric("age")], [Task("buy")])
        >>> MaskNet(schema, 4, blocks=3, block=16)(torch.tensor([[8, 0]]), torch.ones(1, 1)).shape
        torch.Size([1, 48])
    """

    def __init__(
        self, schema: Schema, dim: int, *, blocks: int = 2, block: int = 64, reduction: int = 2, sparse: bool = False
    ) -> None:
        super().__init__(schema, dim, sparse=sparse)
        if min(blocks, block, reduction) < 1:
            raise ValueError(
                f"MaskNet: blocks, block and reduction must be at least 1, found {blocks}, {block} and {reduction}."
            )
        self.numbers = NumericFields(schema, dim)
        fields = len(schema.categorical) + len(schema.numeric)
        self.gain = nn.Parameter(torch.ones(fields, dim))
        self.bias = nn.Parameter(torch.zeros(fields, dim))
        self.blocks = nn.ModuleList(MaskBlock(fields * dim, block, reduction) for _ in range(blocks))
        self.width = blocks * block

    def interact(self, fields: Tensor, numbers: Tensor, /) -> Tensor:
        """Return the outputs of all blocks."""
        every = torch.cat((fields, self.numbers(numbers)), dim=1)
        normalised = nn.functional.layer_norm(every, every.shape[2:]) * self.gain + self.bias
        return torch.cat([block(every.flatten(1), normalised.flatten(1)) for block in self.blocks], dim=1)


class MaskBlock(nn.Module):
    """One block: an instance-guided mask, the feature-wise product, and a normalised layer.

    Example:
        >>> MaskBlock(6, 4, reduction=2)(torch.ones(3, 6), torch.ones(3, 6)).shape
        torch.Size([3, 4])
    """

    def __init__(self, inputs: int, outputs: int, reduction: int) -> None:
        super().__init__()
        hidden = reduction * inputs
        self.mask = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, inputs))
        self.layer = nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.LayerNorm(outputs), nn.ReLU())

    def forward(self, features: Tensor, normalised: Tensor) -> Tensor:
        """Take V and LN_emb(V), shape [B, inputs], and return shape [B, outputs]."""
        found: Tensor = self.layer(self.mask(features) * normalised)
        return found
