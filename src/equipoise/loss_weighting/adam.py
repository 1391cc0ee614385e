"""Adam on one number per task, in which a task that is absent from a step does not move."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AdamPerTask"]


class AdamPerTask(nn.Module):
    """Adam with its moments and its count of steps per task.

    ``torch.optim.Adam`` over a tensor of all tasks would move an absent task by its momentum, and one parameter per
    task would have to know on the host which task is absent.

    Args:
        tasks: the number of tasks M.
        lr: the learning rate.
        betas, eps: as in ``torch.optim.Adam``.
    """

    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, tasks: int, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__()
        self.lr, self.betas, self.eps = lr, betas, eps
        for name in ("first", "second", "steps"):
            self.register_buffer(name, torch.zeros(tasks))

    def forward(self, gradient: Tensor, present: Tensor, /) -> Tensor:
        """Return what to subtract from each task's number, 0 for absent tasks; shape [M].

        Args:
            gradient: shape [M]; not looked at for absent tasks.
            present: bool, shape [M].
        """
        slow, slower = self.betas
        self.steps.add_(present)
        self.first.copy_(torch.where(present, self.first.lerp(gradient, 1 - slow), self.first))
        self.second.copy_(torch.where(present, self.second.lerp(gradient.square(), 1 - slower), self.second))
        unbiased = self.first / (1 - slow**self.steps)
        size = (self.second / (1 - slower**self.steps)).sqrt()
        return torch.where(present, self.lr * unbiased / (size + self.eps), 0.0)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"lr={self.lr}, betas={self.betas}"
