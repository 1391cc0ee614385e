"""Adagrad with one number of state per row, for embedding tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["RowWiseAdagrad"]


class RowWiseAdagrad(Optimizer):
    """Adagrad that keeps, for each row of a matrix, the sum of the mean squares of its gradients.

    With g_r the gradient of row r, of D entries, a step is::

        s_r ← s_r + ‖g_r‖² / D
        θ_r ← (1 − η λ) θ_r − η g_r / (√s_r + ε)

    where η is the learning rate and λ the weight decay, which a row without a gradient does not get. It is
    EXACT_ROWWISE_ADAGRAD of FBGEMM, with its weight decay mode DECOUPLE, which TorchRec fuses into the backward pass
    (Mudigere et al., ISCA 2022, arXiv 2104.05158).

    A table of V rows takes V numbers of state, where Adam takes 2 V D. With sparse gradients, as
    ``nn.Embedding(sparse=True)`` gives them, a step reads and writes the rows of the batch alone; on an accelerator it
    then waits for their number.

    Args:
        params: matrices, or groups of them.
        lr: the learning rate. A row moves by at most lr · √D in its first step, so that a good rate is some hundred
            times larger than one of Adam.
        eps: added to the root, 1e-8 as in FBGEMM.
        weight_decay: of the rows that have a gradient.

    Raises:
        ValueError: a parameter is no matrix, or a number is out of range.

    Example:
        >>> table = torch.nn.Embedding(1000, 16, sparse=True)
        >>> optimizer = RowWiseAdagrad(table.parameters(), lr=0.3)
        >>> table(torch.tensor([3, 5])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[table.weight]["sum"].nonzero().flatten()
        tensor([3, 5])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and from 0 up, found {value!r}.")
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of matrices.

        Raises:
            ValueError: a parameter is no matrix.
        """
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dim() != 2:
                raise ValueError(f"Every parameter must be a matrix of rows, found one of shape {tuple(p.shape)}.")
            if p not in self.state:  # from the start, so that a checkpoint before the first step has it too
                self.state[p] = self.initial(p)

    @staticmethod
    def initial(p: Tensor, /) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step."""
        return {"sum": torch.zeros(p.shape[0], dtype=p.dtype, device=p.device)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every row that has a gradient."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    (_step_sparse if p.grad.is_sparse else _step_dense)(p, p.grad, self.state[p]["sum"], group)
        return result


def _step_dense(p: Tensor, gradient: Tensor, total: Tensor, group: dict[str, Any]) -> None:
    lr, decay = group["lr"], group["weight_decay"]
    square = gradient.square().mean(1)
    total += square
    if decay:
        p.mul_(torch.where(square > 0, 1 - lr * decay, 1.0).unsqueeze(1))
    p.addcmul_(gradient, _rates(total, group).unsqueeze(1), value=-1)


def _step_sparse(p: Tensor, gradient: Tensor, total: Tensor, group: dict[str, Any]) -> None:
    gradient = gradient.coalesce()
    rows, values = gradient._indices()[0], gradient._values()
    square = values.square().mean(1)
    now = total.index_select(0, rows) + square
    total.index_copy_(0, rows, now)
    moved = p.index_select(0, rows)
    if group["weight_decay"]:
        moved *= torch.where(square > 0, 1 - group["lr"] * group["weight_decay"], 1.0).unsqueeze(1)
    p.index_copy_(0, rows, moved.addcmul_(values, _rates(now, group).unsqueeze(1), value=-1))


def _rates(total: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the learning rate of each row; 0 for a row that never had a gradient."""
    return torch.where(total > 0, group["lr"] / (total.sqrt() + group["eps"]), 0.0)
