"""The rows that metrics are made of, and their check."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.ranking.labels import targets_and_present

__all__ = ["checked_columns", "checked_groups"]


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
