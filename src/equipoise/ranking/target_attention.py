"""Target attention: pool the items of a history by how much they bear on the item that is to be ranked."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["TargetAttention"]

_HIDDEN: Final = 36


class TargetAttention(nn.Module):
    """Sums the items of a history, each weighted by an activation unit that sees it beside the target.

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, equation 3: with target q and
    items k_1 ... k_H the result is Σ_j a(k_j, q) k_j. The weights are no softmax, so that their sum tells how strongly
    the history bears on the target (section 4.3). The unit a is a linear layer of 36 units with PReLU and one linear
    unit, as in figure 2. It reads [q, k, q − k, q · k] as the authors' code does; the figure shows an outer product
    in the place of the last two.

    Args:
        dim: width of the embeddings.

    Example:
        >>> attention = TargetAttention(4)
        >>> some, none = torch.tensor([[True, True, False], [False, False, False]])
        >>> attention(torch.randn(2, 4), torch.randn(2, 3, 4), torch.stack((some, none)))[1].tolist()
        [0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, dim: int, /) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * dim, _HIDDEN), nn.PReLU(), nn.Linear(_HIDDEN, 1))

    def forward(self, target: Tensor, items: Tensor, present: Tensor) -> Tensor:
        """Pool the items of each row.

        Args:
            target: shape [B, dim].
            items: shape [B, length, dim].
            present: False where an item is padding, bool, shape [B, length].

        Returns:
            Shape [B, dim]; zeros for a row without items.
        """
        targets = target.unsqueeze(1).expand_as(items)
        weights = self.unit(torch.cat((targets, items, targets - items, targets * items), dim=2))
        return torch.where(present.unsqueeze(2), weights * items, 0).sum(dim=1)
