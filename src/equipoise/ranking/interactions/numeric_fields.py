"""Embeddings of numeric features, for interactions in which all features take part alike."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from equipoise.schema import Schema, Vector

__all__ = ["NumericFields"]


class NumericFields(nn.Module):
    """Gives numeric features embeddings: a number x becomes x v with a learned v, a vector its linear image.

    So factorization machines treat real values (Rendle 2010, section III). Takes the numeric columns, shape [B, N];
    returns shape [B, numeric features, dim]. The entries of v start normal with standard deviation 1 / sqrt(dim), and
    for a vector feature of width w with 1 / sqrt(w dim), so that its image is no longer than the others.

    Example:
        >>> from equipoise.schema import Numeric, Task
        >>> schema = Schema([], [Numeric("age"), Vector("image", 3)], [Task("buy")])
        >>> NumericFields(schema, 4)(torch.ones(2, 4)).shape
        torch.Size([2, 2, 4])
    """

    def __init__(self, schema: Schema, dim: int, /) -> None:
        super().__init__()
        self.dim = dim
        widths = [feature.width if isinstance(feature, Vector) else 0 for feature in schema.numeric]
        # Single numbers beside each other are one part: (0, how many).
        self._parts: list[tuple[int, int]] = []
        for width, group in groupby(widths):
            count = len(list(group))
            self._parts += [(width, width)] * count if width else [(0, count)]
        deviations = [(max(width, 1) * dim) ** -0.5 for width in widths for _ in range(max(width, 1))]
        # Without a numeric feature there is no parameter: an empty one would stay without a gradient.
        self.weight = nn.Parameter(torch.randn(len(deviations), dim)) if deviations else None
        if self.weight is not None:
            with torch.no_grad():
                self.weight.mul_(torch.tensor(deviations).unsqueeze(1))

    def forward(self, numbers: Tensor) -> Tensor:
        """Embed the numbers of each row."""
        if self.weight is None:
            return numbers.new_empty(numbers.shape[0], 0, self.dim)
        columns = [count for _, count in self._parts]
        parts = zip(
            self._parts, numbers.split_with_sizes(columns, 1), self.weight.split_with_sizes(columns), strict=True
        )
        return torch.cat(
            [
                (values @ weight).unsqueeze(1) if width else values.unsqueeze(2) * weight
                for (width, _), values, weight in parts
            ],
            dim=1,
        )
