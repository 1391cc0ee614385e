import copy

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import MGDA, ConFIG, GradDrop, GradVac, Mean, PCGrad, UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward

from equipoise import Clippy
from equipoise.jacobian import JacobianDescent

AGGREGATORS = {"MGDA": MGDA, "UPGrad": UPGrad, "ConFIG": ConFIG, "PCGrad": PCGrad, "GradDrop": GradDrop, "Mean": Mean}


class Net(nn.Module):
    """A shared layer and three towers, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.bottom = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.towers = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
        self.double()

    def losses(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        shared = self.bottom(rows)
        targets = rows.sum(1, keepdim=True) * torch.tensor([1.0, -1.0, 20.0])
        return shared, [
            (tower(shared) - target).square().mean()
            for tower, target in zip(self.towers, targets.split(1, 1), strict=True)
        ]


def rows(step: int) -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def descent(net: Net, aggregator: object, **options) -> JacobianDescent:
    return JacobianDescent(
        torch.optim.Adam(net.parameters(), lr=0.02), aggregator, shared=net.bottom.parameters(), **options
    )


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_training_is_that_of_torchjds_own_functions(name: str) -> None:
    ours, theirs = Net(), Net()
    optimizer = descent(ours, AGGREGATORS[name]())
    reference = torch.optim.Adam(theirs.parameters(), lr=0.02)
    aggregator = AGGREGATORS[name]()
    for step in range(8):
        optimizer.zero_grad()
        optimizer.backward(ours.losses(rows(step))[1])
        torch.manual_seed(step)  # some aggregators are random
        optimizer.step()
        reference.zero_grad()
        shared, losses = theirs.losses(rows(step))
        mtl_backward(losses, features=shared, parallel_chunk_size=1)
        torch.manual_seed(step)
        jac_to_grad(list(theirs.bottom.parameters()), aggregator)
        reference.step()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("absent", ["none", "zero", "nan"])
def test_an_absent_task_is_not_shown_to_the_aggregator(absent: str) -> None:
    seen = []

    def aggregator(jacobian: Tensor) -> Tensor:
        seen.append(jacobian.shape[0])
        return MGDA()(jacobian)

    two, three = Net(), Net()
    expected = JacobianDescent(torch.optim.Adam(two.parameters(), lr=0.02), MGDA(), shared=two.bottom.parameters())
    optimizer = descent(three, aggregator)
    for step in range(3):
        expected.zero_grad()
        expected.backward(two.losses(rows(step))[1][:2])
        expected.step()
        optimizer.zero_grad()
        losses = three.losses(rows(step))[1]
        last = {"none": None, "zero": 0 * losses[2], "nan": torch.nan * losses[2]}[absent]
        optimizer.backward([*losses[:2], last])
        optimizer.step()
    assert seen == [2, 2, 2]
    for own, other in zip(three.bottom.parameters(), two.bottom.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_a_step_without_any_task_moves_nothing_shared() -> None:
    net = Net()
    before = [p.clone() for p in net.bottom.parameters()]
    optimizer = descent(net, MGDA())
    optimizer.zero_grad()
    optimizer.backward([0 * loss for loss in net.losses(rows(0))[1]])
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(net.bottom.parameters(), before, strict=True))


def test_with_one_task_it_is_the_wrapped_optimizer_to_the_last_bit() -> None:
    ours, plain = Net(), Net()
    optimizer, reference = descent(ours, MGDA()), torch.optim.Adam(plain.parameters(), lr=0.02)
    for step in range(4):
        optimizer.zero_grad()
        optimizer.backward(ours.losses(rows(step))[1][:1])
        optimizer.step()
        reference.zero_grad()
        plain.losses(rows(step))[1][0].backward()
        reference.step()
    assert all(torch.equal(own, other) for own, other in zip(ours.parameters(), plain.parameters(), strict=True))


def test_it_goes_on_from_its_state_and_takes_clippy_inside() -> None:
    whole, resumed = Net(), Net()
    optimizer = JacobianDescent(
        Clippy(torch.optim.Adam(whole.parameters(), lr=0.02)), MGDA(), shared=whole.bottom.parameters()
    )
    for step in range(6):
        if step == 3:
            resumed.load_state_dict(whole.state_dict())
            other = JacobianDescent(
                Clippy(torch.optim.Adam(resumed.parameters(), lr=0.02)), MGDA(), shared=resumed.bottom.parameters()
            )
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for net, stepped in ((whole, optimizer), *(((resumed, other),) if step >= 3 else ())):
            stepped.zero_grad()
            stepped.backward(net.losses(rows(step))[1])
            stepped.step()
    assert all(torch.equal(own, same) for own, same in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_an_aggregator_with_a_state_is_refused() -> None:
    with pytest.raises(TypeError, match="without a state of its own, found GradVac"):
        descent(Net(), GradVac())


def test_sparse_gradients_of_shared_parameters_are_refused() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = JacobianDescent(torch.optim.SGD(table.parameters(), lr=0.1), Mean(), shared=table.parameters())
    found = table(torch.tensor([1, 2]))
    optimizer.zero_grad()
    optimizer.backward([found.sum(), found.square().sum()])
    with pytest.raises(TypeError, match="found a sparse one: set sparse=False"):
        optimizer.step()


def test_its_repr_says_what_it_is_made_of() -> None:
    assert "MGDA(epsilon=0.001, max_iters=100), shared=[2 parameters]" in repr(descent(Net(), MGDA()))
