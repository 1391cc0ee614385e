"""Peak memory of a step through a fork, above that of the plain sum of the losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from equipoise import MultiBalance
from equipoise.forks import gram

ROWS, WIDTH = 1 << 16, 256


def peak(tasks: int, fork: MultiBalance | None, device: torch.device) -> int:
    """Return the peak bytes of a step above those of the model and the batch."""
    torch.manual_seed(0)
    bottom, towers = nn.Linear(WIDTH, WIDTH).to(device), nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(tasks))
    towers.to(device)
    x = torch.randn(ROWS, WIDTH, device=device)
    if fork is not None:
        fork.to(device)
    highest = 0
    for _ in range(2):  # the first one makes the workspaces of libraries
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        z = bottom(x)
        branches = [z] * tasks if fork is None else fork(z)
        sum(tower(branch).square().mean() for tower, branch in zip(towers, branches, strict=True)).backward()
        highest = torch.cuda.max_memory_allocated() - before
        del z, branches
        bottom.zero_grad()
        towers.zero_grad()
    return highest


@pytest.mark.parametrize("tasks", [2, 8, 32])
def test_a_fork_holds_each_tasks_gradient_and_a_bounded_workspace(tasks, cuda, record_property):
    """M·|z| for the gradients that meet, and the Gram matrix's workspace: as much again, at most 512 MiB."""
    of_z = ROWS * WIDTH * 4
    above = peak(tasks, MultiBalance(tasks), cuda) - peak(tasks, None, cuda)
    record_property("bytes above the plain sum, in |z|", round(above / of_z, 2))
    workspace = min(tasks * of_z, 4 * gram._ROOM)
    assert above <= tasks * of_z + workspace + (4 << 20)  # the padding of the workspace, and small tensors
