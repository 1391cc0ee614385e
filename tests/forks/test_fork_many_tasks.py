"""The Gram matrix of many tasks is made another way than that of a few: the result is the same whatever happens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equipoise.forks import gram as gram_module
from equipoise.forks.multibalance import MultiBalance

TASKS = 7


class Ranker(nn.Module):
    """Two shared tensors of different shapes, as experts and their gates have; the last task reads the first alone."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.bottom, self.side = nn.Linear(6, 40), nn.Linear(6, 5)
            self.towers = nn.ModuleList(nn.Linear(45 if task < TASKS - 1 else 40, 1) for task in range(TASKS))
        self.fork = MultiBalance(TASKS)

    def forward(self, x: Tensor) -> list[Tensor]:
        branches = self.fork((self.bottom(x).relu(), self.side(x)))
        inputs = [torch.cat(branch, dim=1) for branch in branches[:-1]] + [branches[-1][0]]
        return [
            (task + 1) * tower(own).square().mean()
            for task, (tower, own) in enumerate(zip(self.towers, inputs, strict=True))
        ]


def plain(model: Ranker, x: Tensor) -> None:
    sum(model(x)).backward()


def absent(model: Ranker, x: Tensor) -> None:
    sum(model(x)[1:4]).backward()


def accumulated(model: Ranker, x: Tensor) -> None:
    first, second = model(x[:8]), model(x[8:])
    (sum(first) + sum(second)).backward()


def twice(model: Ranker, x: Tensor) -> None:
    loss = sum(model(x))
    loss.backward(retain_graph=True)
    loss.backward()


def penalised(model: Ranker, x: Tensor) -> None:
    loss = sum(model(x))
    (gradient,) = torch.autograd.grad(loss, model.bottom.weight, create_graph=True)
    (loss + gradient.square().sum()).backward()


def checkpointed(model: Ranker, x: Tensor) -> None:
    sum(checkpoint(model, x, use_reentrant=False)).backward()


def autocast(model: Ranker, x: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sum(model(x)).backward()


def scaled(model: Ranker, x: Tensor) -> None:
    torch.amp.GradScaler("cpu", init_scale=2.0**70).scale(sum(model(x))).backward()


def overflown(model: Ranker, x: Tensor) -> None:
    losses = model(x)
    losses[2] = losses[2] * float("inf")
    sum(losses).backward()


def a_gradient_kept(model: Ranker, x: Tensor) -> None:
    """Check that a gradient kept by a hook or ``retain_grad`` does not change in the next step."""
    kept: list[Tensor] = []
    handle = model.fork.register_forward_hook(lambda *call: [b[0].register_hook(kept.append) for b in call[2]] and None)
    plain(model, x)
    before = [gradient.clone() for gradient in kept]
    handle.remove()
    plain(model, x.flip(0) * 2)
    assert len(kept) == TASKS
    assert all(torch.equal(*pair) for pair in zip(kept, before, strict=True))


@pytest.mark.parametrize(
    "step",
    [plain, absent, accumulated, twice, penalised, checkpointed, autocast, scaled, overflown, a_gradient_kept],
    ids=lambda step: step.__name__,
)
def test_many_tasks_are_treated_as_few(step: Callable[[Ranker, Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = Ranker(), Ranker()
    x = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(1))
    for batch in x:
        step(many, batch)
        with monkeypatch.context() as patched:
            patched.setattr(gram_module, "_FEW", TASKS)
            step(few, batch)
        for (name, found), expected in zip(many.named_parameters(), few.parameters(), strict=True):
            if expected.grad is None:  # an absent task's tower
                assert found.grad is None
                continue
            torch.testing.assert_close(
                found.grad, expected.grad, rtol=1e-4, atol=1e-6 * float(expected.grad.nan_to_num(0, 0, 0).abs().max()),
                equal_nan=True, msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip
        torch.testing.assert_close(many.fork.averages, few.fork.averages)
        torch.testing.assert_close(many.fork.last_present, few.fork.last_present)


def test_losses_one_by_one_are_still_refused() -> None:
    losses = Ranker()(torch.ones(4, 6))
    losses[0].backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"has seen 0 in a first backward.*now 3"):
        losses[3].backward()
