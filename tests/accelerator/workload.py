"""A small ranker with three tasks, its batches, and one training step with a fork or with a task optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.forks import Fork
from equipoise.optim import ConsistentTowers
from tests.forks.every_fork import FORKS, TASKS
from tests.optim.task_nets import BUILDERS, KINDS, take_step

__all__ = ["ROWS", "Batch", "Ranker", "Training", "batches", "with_consistent_towers", "with_fork", "with_optimizer"]

ROWS = 64
Batch = tuple[Tensor, Tensor]


class Ranker(nn.Module):
    """An embedding, a bottom and one tower per task; one loss is thirty times another. The copies may be stacked."""

    def __init__(self, fork: Fork | None = None, *, stacked: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(50, 8)
            self.bottom = nn.Sequential(nn.Linear(24, 32), nn.Tanh())
            self.towers = nn.ModuleList(nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in TASKS)
        self.fork = fork
        self.stacked = stacked

    def shared(self) -> list[nn.Parameter]:
        return [*self.table.parameters(), *self.bottom.parameters()]

    def forward(self, ids: Tensor, targets: Tensor) -> list[Tensor]:
        """Return the tasks' losses; ``ids`` [B, 3], ``targets`` [M, B]."""
        z = self.bottom(self.table(ids).flatten(1))
        if self.fork is None:
            branches = [z] * len(TASKS)
        else:
            branches = self.fork.stacked(z).unbind() if self.stacked else self.fork(z)
        logits = [tower(branch).squeeze(1) for tower, branch in zip(self.towers, branches, strict=True)]
        of_tasks = zip(logits, targets.unbind(), (1.0, 3.0, 0.1), strict=True)
        return [scale * (logit.float() - target).square().mean() for logit, target, scale in of_tasks]


def batches(device: torch.device, count: int) -> list[Batch]:
    """Return batches on the device, the same numbers on every one."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(50, (ROWS, 3), generator=generator).to(device),
            torch.randn(len(TASKS), ROWS, generator=generator).to(device),
        )
        for _ in range(count)
    ]


class Training:
    """A ranker with its optimizer; ``call`` is the ranker itself, or a module around it."""

    def __init__(self, model: Ranker, optimizer: Optimizer, call: nn.Module | None = None) -> None:
        self.model, self.optimizer = model, optimizer
        self.call = model if call is None else call

    def step(self, batch: Batch, absent: Sequence[int] = ()) -> None:
        """Make one step, without the losses of the absent tasks."""
        losses = [None if task in absent else loss for task, loss in enumerate(self.call(*batch))]
        if self.model.fork is None or isinstance(self.optimizer, ConsistentTowers):
            take_step(self.optimizer, losses)
            return
        self.optimizer.zero_grad()
        torch.stack([loss for loss in losses if loss is not None]).sum().backward()
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, gradients and all state by name, on the CPU."""
        found: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters():
            found[f"weight {name}"] = parameter
            if parameter.grad is not None:
                found[f"gradient {name}"] = parameter.grad
            found |= {f"state {name} {key}": value for key, value in self.optimizer.state[parameter].items()}
        if self.model.fork is not None:
            found |= {f"state {name}": buffer for name, buffer in self.model.fork.named_buffers()}
            last = ("last_gram", "last_weights", "last_present")
            found |= {f"state {name}": getattr(self.model.fork, name) for name in last}
        return {name: value.detach().cpu() for name, value in found.items() if isinstance(value, Tensor)}


def with_fork(name: str, device: torch.device, *, stacked: bool = False) -> Training:
    """Return a training with a fork of ``FORKS`` and SGD."""
    model = Ranker(FORKS[name](), stacked=stacked).to(device)
    return Training(model, KINDS["sgd"](model.parameters()))


def with_optimizer(name: str, make: Callable[[Iterable[Tensor]], Optimizer], device: torch.device) -> Training:
    """Return a training with one of ``BUILDERS`` around the optimizer that ``make`` gives."""
    model = Ranker().to(device)
    return Training(model, BUILDERS[name](make(model.parameters()), model.shared()))


def with_consistent_towers(device: torch.device) -> Training:
    """Return a training with ConsMTL: the fork of FairGrad, and towers that learn from its gradient."""
    model = Ranker(FORKS["fairgrad"]()).to(device)
    return Training(model, ConsistentTowers(KINDS["sgd"](model.parameters())))
