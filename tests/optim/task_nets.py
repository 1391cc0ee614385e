"""The optimizers, wrappers and networks that the tests of task optimizers run through."""

from __future__ import annotations

import torch
from torch import nn

from equipoise.optim import PUB, AdaTask, Clippy, MetaBalance
from equipoise.optim.forms import FORMS

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
}

KINDS = OPTIMIZERS | {"adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True)}


def _pub(form):
    return lambda optimizer, shared: PUB(optimizer, shared=shared, update_every=3, form=form, solve_on="all")


WRAPPERS = {
    "pub": lambda optimizer, shared: PUB(optimizer, shared=shared, update_every=3),
    **{f"pub-{form}": _pub(form) for form in FORMS},
    "adatask": lambda optimizer, shared: AdaTask(optimizer, shared=shared),
    "metabalance": lambda optimizer, shared: MetaBalance(optimizer, shared=shared),
    "pub-metabalance": lambda optimizer, shared: _pub("ours")(MetaBalance(optimizer, shared=shared), shared),
    "pub-adatask": lambda optimizer, shared: _pub("authors")(AdaTask(optimizer, shared=shared), shared),
}
PREFERENCES = [9.0, 1.0, 2.0]
# The wrappers, with preferences of three tasks and around Clippy, and Clippy alone.
BUILDERS = {
    **WRAPPERS,
    "clippy": lambda optimizer, _: Clippy(optimizer),
    "adatask-clippy": lambda optimizer, shared: AdaTask(Clippy(optimizer), shared=shared),
    "pub-clippy": lambda optimizer, shared: PUB(Clippy(optimizer), shared=shared, update_every=3),
    "pub-preferences": lambda optimizer, shared: PUB(
        optimizer, shared=shared, update_every=3, task_weights=PREFERENCES
    ),
    "adatask-preferences": lambda optimizer, shared: AdaTask(optimizer, shared=shared, task_weights=PREFERENCES),
    "metabalance-preferences": lambda optimizer, shared: MetaBalance(
        optimizer, shared=shared, task_weights=PREFERENCES
    ),
}
SYMMETRIC = [name for name in WRAPPERS if "metabalance" not in name]  # whose target is the first task
ACCUMULATING = [name for name in WRAPPERS if name != "pub"]  # the others take all backward calls before a step alike
SPANNING = [f"pub-{name}" for name, form in FORMS.items() if form.spans_towers]


class Net(nn.Module):
    def __init__(self, tasks: int, *, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 3, sparse=sparse)
        self.bottom = nn.Linear(6, 5)
        self.towers = nn.ModuleList(nn.Linear(5, 1) for _ in range(tasks))

    def shared(self) -> list[nn.Parameter]:
        return [*self.table.parameters(), *self.bottom.parameters()]

    def losses(self, step: int, absent: tuple[int, ...] = ()) -> list[torch.Tensor | None]:
        generator, device = torch.Generator().manual_seed(step), self.bottom.weight.device
        ids = torch.randint(0, 20, (8, 2), generator=generator).to(device)
        targets = torch.randn(len(self.towers), 8, generator=generator).to(device)
        z = torch.tanh(self.bottom(self.table(ids).flatten(1)))
        found = [(tower(z).squeeze(1) - y).square().mean() for tower, y in zip(self.towers, targets, strict=True)]
        return [None if task in absent else loss for task, loss in enumerate(found)]


def train(net, optimizer, steps, absent=()):
    for step in steps:
        optimizer.zero_grad()
        optimizer.backward(net.losses(step, absent))
        optimizer.step()


def take_step(optimizer, losses):
    """Make one step of any of ``BUILDERS``."""
    optimizer.zero_grad()
    if isinstance(optimizer, Clippy):
        sum(loss for loss in losses if loss is not None).backward()
    else:
        optimizer.backward(losses)
    optimizer.step()


def values(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def points(p):
    """One task per column of ``p``'s gradient: losses whose gradients are those columns."""
    return lambda *gradients: [(p * torch.tensor(g, dtype=p.dtype)).sum() for g in gradients]


def pub(net, **options):
    return PUB(torch.optim.Adam(net.parameters()), shared=net.shared(), **options)
