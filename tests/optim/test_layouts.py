"""Gradients and parameters in several layouts: sparse and dense parts of one table, channels_last, transposed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from equipoise.optim import PUB, AdaTask
from tests.optim.task_nets import ACCUMULATING, WRAPPERS

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}


class Table(nn.Module):
    """The first task reads the table sparsely, the second one densely, the third one both ways."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
        self.sparse = sparse

    def losses(self, step: int, absent: tuple[int, ...] = ()) -> list[torch.Tensor | None]:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 8, (4,), generator=generator)
        head = torch.randn(3, 3, generator=generator)
        rows = functional.embedding(ids, self.weight, sparse=self.sparse)
        found = [
            (rows @ head[0]).square().mean(),
            (self.weight @ head[1]).square().mean(),
            (rows @ head[2]).mean() + (self.weight @ head[2]).square().mean(),
        ]
        return [None if task in absent else loss for task, loss in enumerate(found)]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad brings it about
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("wrapper", ACCUMULATING)
def test_sparse_and_dense_parts_of_one_table_give_what_dense_ones_give(wrapper, kind):
    tables = Table(sparse=True), Table(sparse=False)
    optimizers = [WRAPPERS[wrapper](OPTIMIZERS[kind]([table.weight]), [table.weight]) for table in tables]
    for step in range(8):
        for table, optimizer in zip(tables, optimizers, strict=True):
            optimizer.zero_grad()
            optimizer.backward(table.losses(step, absent=(2,) if step == 4 else ()))
            optimizer.backward(table.losses(step + 50))
            optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-4, atol=1e-6)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bottom = nn.Conv2d(3, 4, 3)
        self.towers = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))

    def losses(self, step: int) -> list[torch.Tensor]:
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step)).double()
        z = torch.tanh(self.bottom(x)).mean((2, 3))
        return [(tower(z) - task).square().mean() for task, tower in enumerate(self.towers)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("when", ["before", "after", "later"])
def test_channels_last_gives_what_contiguous_parameters_give(wrapper, kind, when):
    nets = Images().double(), Images().double()
    optimizers = []
    for last, net in zip((True, False), nets, strict=True):
        if last and when == "before":
            net.to(memory_format=torch.channels_last)
        optimizers.append(WRAPPERS[wrapper](OPTIMIZERS[kind](net.parameters()), list(net.bottom.parameters())))
        if last and when == "after":
            net.to(memory_format=torch.channels_last)
    for step in range(8):
        if when == "later" and step == 4:
            nets[0].to(memory_format=torch.channels_last)
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            optimizer.backward(net.losses(step))
            optimizer.step()
    assert not nets[0].bottom.weight.is_contiguous()
    torch.testing.assert_close(list(nets[0].parameters()), list(nets[1].parameters()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [PUB, AdaTask])
def test_a_transposed_parameter_is_trained_in_place(make):
    storage = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shared, plain = nn.Parameter(storage.t()), nn.Parameter(storage.t().contiguous())
    for p in (shared, plain):
        optimizer = make(torch.optim.Adam([p], lr=0.1), shared=[p])
        for step in range(4):
            factors = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            optimizer.zero_grad()
            optimizer.backward([(p * factor).sum() for factor in factors])
            optimizer.step()
    torch.testing.assert_close(shared.contiguous(), plain, rtol=1e-9, atol=1e-12)
