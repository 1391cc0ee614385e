"""Differentially private training: what breaks its bound is refused, and fixed weights keep it."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from equipoise import PUB, AdaTask, Fork, MultiBalance
from equipoise.forks import GradDrop, Weighted
from equipoise.per_sample import computed_per_sample

CLIP = 0.1


class Net(nn.Module):
    def __init__(self, fork: Fork) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.bottom = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.fork = fork
        self.towers = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [tower(branch).squeeze(1) for tower, branch in zip(self.towers, self.fork(self.bottom(x)), strict=True)]


def examples() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(32, 6, generator=random), (torch.rand(32, 2, generator=random) < 0.5).float()


def losses_of(net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return [nn.functional.binary_cross_entropy_with_logits(out, y[:, i]) for i, out in enumerate(net(x))]


def clipped_sum(fork: Fork, x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of the examples' gradients of the first layer, each clipped: what DP-SGD adds noise to."""
    net = Net(fork)
    seen: list[Tensor] = []
    net.bottom[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    losses = losses_of(net, x, y)
    seen[0].retain_grad()
    sum(losses).backward()
    delta = seen[0].grad
    gradients = len(x) * torch.cat([delta.unsqueeze(2) * x.unsqueeze(1), delta.unsqueeze(2)], 2).flatten(1)
    return (gradients * (CLIP / gradients.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)


def movement(fork: type[Fork], *options: object) -> float:
    """Return how far the clipped sum moves when one example is replaced by an extreme one."""
    x, y = examples()
    other_x, other_y = x.clone(), y.clone()
    y[0], other_y[0] = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 40.0])  # a label out of range, as a bug may write
    return float((clipped_sum(fork(2, *options), x, y) - clipped_sum(fork(2, *options), other_x, other_y)).norm())


def test_one_example_moves_a_clipped_sum_beyond_its_bound_where_weights_depend_on_the_batch() -> None:
    bound = 2 * CLIP  # an example leaves, another comes
    assert movement(Weighted, [3.0, 1.0]) <= bound * (1 + 1e-5)
    assert movement(Fork) <= bound * (1 + 1e-5)
    assert movement(GradDrop) <= bound * (1 + 1e-5)
    assert movement(MultiBalance) > 1.5 * bound


@pytest.fixture
def opacus_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    if "opacus" not in sys.modules:
        monkeypatch.setitem(sys.modules, "opacus", ModuleType("opacus"))


def marked(net: Net) -> Net:
    """Mark the parameters as Opacus marks them."""
    for parameter in net.parameters():
        parameter.grad_sample = None  # type: ignore[attr-defined]
    return net


@pytest.mark.usefixtures("opacus_imported")
@pytest.mark.parametrize("fork", [MultiBalance(2), Weighted(2, lambda gram: gram.diagonal())])
def test_forks_whose_weights_depend_on_the_batch_refuse_per_sample_gradients(fork: Fork) -> None:
    net = Net(fork)
    net(examples()[0])  # not marked: an ordinary model beside a private one
    with pytest.raises(RuntimeError, match=r"would not bound what an example can change.*Weighted\(\['0', '1'\], \["):
        marked(net)(examples()[0])
    net.eval()
    net(examples()[0])  # nothing is weighed in evaluation


@pytest.mark.usefixtures("opacus_imported")
@pytest.mark.parametrize("fork", [Fork(2), Weighted(2, [2.0, 0.5]), GradDrop(2)])
def test_forks_that_keep_examples_apart_take_per_sample_gradients(fork: Fork) -> None:
    assert not fork.mixes_examples
    marked(Net(fork))(examples()[0])


def test_without_opacus_no_graph_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opacus", raising=False)
    monkeypatch.setattr("equipoise.forks.fork.computed_per_sample", None)
    Net(MultiBalance(2))(examples()[0])


@pytest.mark.parametrize("method", [PUB, AdaTask])
def test_balanced_updates_refuse_per_sample_gradients(method: type[PUB | AdaTask]) -> None:
    net = marked(Net(Fork(2)))
    optimizer = method(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) if method is PUB
                       else torch.optim.Adam(net.parameters()), shared=list(net.bottom.parameters()))  # fmt: skip
    with pytest.raises(RuntimeError, match=f"{method.__name__} weighs the tasks' updates.*clipped and noisy sums"):
        optimizer.backward(losses_of(net, *examples()))


def test_marked_parameters_are_found_wherever_a_tensor_was_computed_from_them() -> None:
    net = Net(Fork(2))
    out = net.bottom(examples()[0]).square() @ torch.ones(8)
    assert not computed_per_sample([out])
    net.bottom[0].bias.grad_sample = None
    assert computed_per_sample([out])
    assert not computed_per_sample([net.bottom[1](examples()[0])])


class TestWithOpacus:
    """Opacus itself; it is not among the tools of development, because it asks for another torch."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("opacus", reason="Opacus is not installed: pip install --no-deps opacus opt_einsum")

    def test_gradients_of_examples_are_those_of_each_alone_with_fixed_weights(self) -> None:
        from opacus.grad_sample import GradSampleModule

        x, y = examples()
        net = Net(Weighted(2, [2.0, 0.5]))
        first, second = losses_of(GradSampleModule(net), x, y)
        (first + second).backward()
        alone = Net(Fork(2))
        for row in range(len(x)):
            one, other = losses_of(alone, x[row : row + 1], y[row : row + 1])
            trunk, towers = list(alone.bottom.parameters()), list(alone.towers.parameters())
            expected = [*torch.autograd.grad(2 * one + 0.5 * other, trunk, retain_graph=True),
                        *torch.autograd.grad(one + other, towers)]  # fmt: skip
            found = [parameter.grad_sample[row] for parameter in (*net.bottom.parameters(), *net.towers.parameters())]
            torch.testing.assert_close(found, expected)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("mode", ["hooks", "functorch", "ew"])
    def test_private_training_runs_with_fixed_weights_and_refuses_multibalance(self, mode: str) -> None:
        from opacus import PrivacyEngine

        def train(fork: Fork) -> None:
            net = Net(fork)
            loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), batch_size=8)
            private, optimizer, batches = PrivacyEngine().make_private(
                module=net, optimizer=torch.optim.Adam(net.parameters()), data_loader=loader, noise_multiplier=1.0,
                max_grad_norm=1.0, grad_sample_mode=mode,
            )  # fmt: skip
            for x, y in batches:
                optimizer.zero_grad()
                sum(losses_of(private, x, y)).backward()
                optimizer.step()

        train(Weighted(2, [2.0, 0.5]))
        with pytest.raises(RuntimeError, match="would not bound what an example can change"):
            train(MultiBalance(2))
