"""Helpers of the fork's tests: a fork with given weights, and backward passes with given gradients."""

import torch
from torch import Tensor, nn

from equipoise.forks.fork import Fork


class Fixed(Fork):
    """A fork with given weights that remembers the arguments of `weigh`."""

    def __init__(self, weights):
        super().__init__(len(weights))
        self.weights = torch.tensor(weights)
        self.told = []

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        self.told.append((gram.clone(), present.clone(), torch.is_grad_enabled()))
        return self.weights


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def leaf(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return random(seed, *shape, dtype=dtype).requires_grad_()


def feed(fork: Fork, gradients: list[Tensor | None], shared: Tensor | None = None) -> Tensor:
    """Return the gradient sent upstream if task m's gradient is `gradients[m]`, None for a loss not computed."""
    like = next(gradient for gradient in gradients if gradient is not None)
    shared = torch.zeros_like(like, requires_grad=True) if shared is None else shared
    branches = fork(shared)
    sum(
        (branch * gradient).sum() for branch, gradient in zip(branches, gradients, strict=True) if gradient is not None
    ).backward()
    return shared.grad


class Towers(nn.Module):
    """A bottom and one tower per task, with or without a fork in between, whose copies may be stacked."""

    def __init__(self, fork: Fork | None, tasks: int = 3, *, stacked: bool = False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.bottom = nn.Linear(6, 5)
            self.towers = nn.ModuleList(
                nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(tasks)
            )
        self.fork = fork
        self.stacked = stacked

    def forward(self, x: Tensor) -> list[Tensor]:
        z = torch.tanh(self.bottom(x))
        if self.fork is None:
            branches = [z] * len(self.towers)
        else:
            branches = self.fork.stacked(z).unbind() if self.stacked else self.fork(z)
        return [
            10.0**m * tower(branch).square().mean()
            for m, (tower, branch) in enumerate(zip(self.towers, branches, strict=True))
        ]
