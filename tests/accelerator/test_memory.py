"""Peak memory of a step through a fork, above that of the plain sum of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from equipoise import MultiBalance
from equipoise.forks import gram

ROWS, WIDTH = 1 << 16, 256


class Towers(nn.Module):
    """A linear tower per task, above a fork if there is one."""

    def __init__(self, tasks: int, fork: MultiBalance | None) -> None:
        super().__init__()
        self.tasks, self.fork = tasks, fork
        self.towers = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(tasks))

    def forward(self, z: Tensor) -> Sequence[Tensor]:
        branches = [z] * self.tasks if self.fork is None else self.fork(z)
        return [tower(branch) for tower, branch in zip(self.towers, branches, strict=True)]


class BatchedTowers(nn.Module):
    """The same as one batched product."""

    def __init__(self, tasks: int, fork: MultiBalance | None) -> None:
        super().__init__()
        self.tasks, self.fork = tasks, fork
        self.weights = nn.Parameter(torch.randn(tasks, WIDTH, 1) / 16)

    def forward(self, z: Tensor) -> Sequence[Tensor]:
        copies = z.expand(self.tasks, *z.shape) if self.fork is None else self.fork.stacked(z)
        return torch.bmm(copies, self.weights).unbind()


def peak(towers: nn.Module, device: torch.device) -> int:
    """Return the peak bytes of a step above those of the model and the batch."""
    torch.manual_seed(0)
    bottom = nn.Linear(WIDTH, WIDTH).to(device)
    towers.to(device)
    x = torch.randn(ROWS, WIDTH, device=device)
    highest = 0
    for _ in range(2):  # the first one makes the workspaces of libraries
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sum(logits.square().mean() for logits in towers(bottom(x))).backward()
        highest = torch.cuda.max_memory_allocated() - before
        bottom.zero_grad()
        towers.zero_grad()
    return highest


@pytest.mark.parametrize("tasks", [2, 8, 32])
def test_a_fork_holds_each_tasks_gradient_and_a_bounded_workspace(tasks, cuda, record_property):
    """M·|z| for the gradients that meet, and the Gram matrix's workspace: as much again, at most 512 MiB."""
    of_z = ROWS * WIDTH * 4
    above = peak(Towers(tasks, MultiBalance(tasks)), cuda) - peak(Towers(tasks, None), cuda)
    record_property("bytes above the plain sum, in |z|", round(above / of_z, 2))
    workspace = min(tasks * of_z, 4 * gram._ROOM)
    assert above <= tasks * of_z + workspace + (4 << 20)  # the padding of the workspace, and small tensors


@pytest.mark.parametrize("tasks", [8, 32])
def test_stacked_copies_need_nothing_above_batched_towers_alone(tasks, cuda, record_property):
    """Their gradient is there in any case."""
    of_z = ROWS * WIDTH * 4
    above = peak(BatchedTowers(tasks, MultiBalance(tasks)), cuda) - peak(BatchedTowers(tasks, None), cuda)
    record_property("bytes above the plain sum, in |z|", round(above / of_z, 2))
    assert above <= of_z
