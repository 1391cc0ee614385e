"""The rows that metrics are made of: their check, and torchmetrics classes that keep sums or whole rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.errors import how_to_install
from equipoise.ranking.labels import targets_and_present

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"equipoise.ranking.metrics needs torchmetrics: {how_to_install('ranking')}.", name=error.name
    ) from error

__all__ = ["Metric", "RowMetric", "checked_columns", "checked_groups"]


class RowMetric(Metric):
    """A metric that needs all rows at once: keeps ``width`` columns of them in float64."""

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._width = width
        self.add_state("rows", [], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks, as ``torchmetrics.Metric.sync``."""
        # A rank that saw no row must take part in the gather all the same, with the same type and width: the
        # others would wait for it (torchmetrics 1.0) or receive float32 (later).
        self.rows = [self.all_rows()]
        super().sync(*args, **kwargs)

    def all_rows(self) -> Tensor:
        """Return the rows kept so far, float64, shape [N, width]."""
        if len(self.rows) == 0:
            return torch.empty(0, self._width, dtype=torch.float64, device=self.device)
        return dim_zero_cat(self.rows)


def checked_columns(
    predictions: Sequence[Tensor],
    labels: Sequence[Tensor],
    weight: Tensor | None,
    *,
    binary: Sequence[bool],
    called: str = "Logits",
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check predictions [B] and labels [B] of M tasks and the weight [B]; return [B, M], [B, M] and float64 [B, 1].

    In the labels returned, NaN is what is missing.

    Args:
        binary: per task, whether its labels are 0 and 1; otherwise any finite number.
        called: the word for the predictions in messages.
        dtype: of the predictions and labels returned.

    Raises:
        ValueError: shapes differ, a label is something else, or a weight is negative or not finite.
    """
    if weight is None:
        weight = torch.ones_like(labels[0], dtype=torch.float64)
    shapes = {tuple(tensor.shape) for tensor in (*predictions, *labels, weight)}
    if len(shapes) > 1 or predictions[0].ndim != 1:
        found = ", ".join(
            f"{name} {[list(tensor.shape) for tensor in tensors]}"
            for name, tensors in ((called.lower(), predictions), ("labels", labels), ("weight", [weight]))
        )
        raise ValueError(f"{called}, labels and weight must have one shape [B], found {found}.")
    values = torch.stack([column.detach().to(dtype) for column in predictions], dim=1)
    stated = torch.stack([column.to(dtype) for column in labels], dim=1)
    targets, present = targets_and_present(stated)
    is_binary = torch.tensor(list(binary), device=stated.device)
    truth = torch.where(is_binary, targets.where(present, torch.nan), stated)
    weight = weight.double().unsqueeze(1)
    wrong_binary = is_binary & targets.isnan()
    wrong_number = ~is_binary & stated.isinf()
    wrong_weight = ~(weight.isfinite() & (weight >= 0))
    if bool(wrong_binary.any() | wrong_number.any() | wrong_weight.any()):  # one host sync for all
        if wrong_binary.any():
            first = stated[wrong_binary][0].item()
            raise ValueError(f"Labels must be 0, 1, or NaN or −1 where missing, found {first}.")
        if wrong_number.any():
            first = stated[wrong_number][0].item()
            raise ValueError(f"Targets must be finite, or NaN where missing, found {first}.")
        raise ValueError(f"Weights must be finite and not negative, found {weight[wrong_weight][0].item()}.")
    return values, truth, weight


def checked_groups(groups: Tensor, rows: Tensor) -> Tensor:
    """Check the group of each row; return it as float64, shape [B, 1].

    Raises:
        ValueError: the groups are no whole numbers, or their shape is not that of the rows.
    """
    if groups.is_floating_point() or groups.is_complex() or groups.shape != rows.shape[:1]:
        raise ValueError(
            f"Groups must be whole numbers of shape [{len(rows)}], found {groups.dtype} of shape {list(groups.shape)}."
        )
    return groups.double().unsqueeze(1)
