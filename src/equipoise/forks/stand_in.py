"""The module that takes a fork's place in TorchScript: a fork in eval mode, without state."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["Copies"]


class Copies(nn.Module):
    """Hands one tensor on to each task.

    Args:
        tasks: the number of tasks.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.training = False

    def forward(self, shared: Tensor) -> list[Tensor]:
        """Return the tensor once per task."""
        return [shared] * self.tasks

    @torch.jit.export
    def stacked(self, shared: Tensor) -> Tensor:
        """Return the tensor with a first dimension of tasks."""
        size = list(shared.shape)
        size.insert(0, self.tasks)
        return shared.expand(size)

    @torch.jit.unused
    def train(self, mode: bool = True) -> Self:
        """Refuse: raises ``RuntimeError``."""
        if mode:
            raise RuntimeError(
                "torch.jit.script has put a stand-in for serving into the place of this model's fork, so it cannot be "
                "trained any more. Script a copy: torch.jit.script(copy.deepcopy(model).eval())."
            )
        return super().train(mode)
