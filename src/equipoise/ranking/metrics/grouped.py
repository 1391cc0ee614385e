"""Grouped AUC: how well each user's own rows are ordered, which is what a ranking shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.ranking.metrics.rows import checked_columns, checked_groups

__all__ = ["GroupedAreas", "grouped_areas", "grouped_auc", "rows_of"]


def grouped_auc(logits: Tensor, labels: Tensor, groups: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the mean of the AUC within each group, weighted by the group's rows, in [0, 1].

    ``GAUC = Σ_g n_g AUC_g / Σ_g n_g`` with ``n_g`` the impressions of a user: Zhou et al., "Deep Interest Network for
    Click-Through Rate Prediction" (KDD 2018), equation 9. A group of one class has no AUC and is left out. NaN where
    every group is. Takes O(B log B) time.

    Args:
        logits: floating point, shape [B].
        labels: 0, 1, or NaN or −1 where missing, shape [B].
        groups: the group of each row, whole numbers, shape [B].
        weight: non-negative and finite, shape [B]; None: 1 for every row. A pair of rows counts with the product of
            their weights, a group with the sum of its rows'.

    Raises:
        ValueError: shapes differ, a label is something else, a weight is negative or not finite, or the groups are no
            whole numbers.

    Example:
        >>> logits, labels = torch.tensor([0.1, 0.9, 5.0, 4.0, 3.0]), torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
        >>> grouped_auc(logits, labels, torch.tensor([7, 7, 8, 8, 8]))  # 1 for 2 rows, 0.5 for 3
        tensor(0.7000, dtype=torch.float64)
    """
    return grouped_areas(*rows_of(logits, labels, groups, weight).unbind(1)).mean


@dataclass(frozen=True)
class GroupedAreas:
    """The AUC of each group that has both classes.

    Attributes:
        areas: float64, shape [G].
        weights: the sum of the weights of each group's rows, shape [G].
        left_out: the number of groups with rows of one class only.
    """

    areas: Tensor
    weights: Tensor
    left_out: int

    @property
    def mean(self) -> Tensor:
        """The weighted mean, a scalar; NaN without a group."""
        return (self.areas * self.weights).sum() / self.weights.sum()


def grouped_areas(logits: Tensor, labels: Tensor, weight: Tensor, groups: Tensor) -> GroupedAreas:
    """Return the area of each group from four columns of shape [B], float64; rows without label or weight are none.

    If a logit among the rows that count is NaN, so is the area of its group.
    """
    counts = ~labels.isnan() & (weight > 0)
    scores, truth, weight, groups = (column[counts] for column in (logits, labels, weight, groups))
    order = scores.sort(stable=True).indices
    order = order[groups[order].sort(stable=True).indices]  # by group, within a group by score
    scores, truth, weight, groups = (column[order] for column in (scores, truth, weight, groups))

    def changes(column: Tensor) -> Tensor:
        first = torch.ones_like(column, dtype=torch.bool)
        first[1:] = column[1:] != column[:-1]
        return first

    new_group = changes(groups)
    new_block = new_group | changes(scores)  # tied rows of a group are one step of its curve
    group, block = new_group.cumsum(0) - 1, new_block.cumsum(0) - 1
    group_of_block = group[new_block]
    positive, negative = weight * truth, weight * (1 - truth)

    def sums(values: Tensor, places: Tensor, count: int) -> Tensor:
        return values.new_zeros(count).index_add_(0, places, values)

    blocks, found = len(group_of_block), int(new_group.sum())
    positives, negatives = sums(positive, group, found), sums(negative, group, found)
    tied = sums(positive, block, blocks)
    above = (positives.cumsum(0)[group_of_block] - tied.cumsum(0)).clamp(min=0)  # positives of the group ranked higher
    right = sums(sums(negative, block, blocks) * (above + tied / 2), group_of_block, found)
    both = (positives > 0) & (negatives > 0)
    areas = (right / (positives * negatives)).clamp(0, 1)
    unknown = sums(scores.isnan().double(), group, found) > 0
    areas = areas.masked_fill(unknown, torch.nan)
    return GroupedAreas(areas[both], (positives + negatives)[both], int((~both).sum()))


def rows_of(logits: Tensor, labels: Tensor, groups: Tensor, weight: Tensor | None) -> Tensor:
    """Check four columns [B]; return them side by side in float64, shape [B, 4]."""
    columns = checked_columns([logits], [labels], weight, binary=[True])
    return torch.cat((*columns, checked_groups(groups, labels)), dim=1)
