"""Each kernel computes what its plain form does.

Triton's interpreter runs them on the CPU, one program after another; ``tests/conftest.py`` asks for it.
``tests/accelerator`` tries them on a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from equipoise import Fork, MultiBalance
from equipoise.forks import gram as plain
from equipoise.forks import multibalance
from equipoise.forks.balance_options import BalanceOptions
from equipoise.forks.kernel_choice import LIBRARY

kernels = pytest.importorskip("equipoise.forks.kernels", reason="needs Triton", exc_type=ImportError)


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType | None], None]:
    """Return what lets forks on the CPU take these kernels, or None of them."""

    def taken(module: ModuleType | None) -> None:
        for user in (plain, multibalance):
            monkeypatch.setattr(user, "kernels_for", lambda _: module)

    return taken


@pytest.fixture(params=["kernels", "cpu_kernels"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "cpu_kernels" and not LIBRARY.exists():
        pytest.skip("built without a C compiler")
    return importlib.import_module(f"equipoise.forks.{request.param}")


pytestmark = [
    # The interpreter computes in NumPy, with inf and NaN too; Triton 3.6 takes a number out of an array of one.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a device, tests/accelerator runs them on it"),
]


def vectors(count: int, length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count * length)
    return [torch.randn(length, generator=generator).to(dtype) * 3.0 ** (task % 5) for task in range(count)]


def gram_in_float64(gradients: list[Tensor]) -> Tensor:
    rows = torch.stack(gradients).double()
    return rows @ rows.T


def assert_gram(found: Tensor, gradients: list[Tensor]) -> None:
    expected = gram_in_float64(gradients)
    lengths = expected.diagonal().sqrt()
    torch.testing.assert_close(found.double() / lengths / lengths[:, None], expected / lengths / lengths[:, None],
                               rtol=0, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "length"), [(1, 1), (2, 5000), (3, 2048), (5, 1000), (8, 1025), (9, 700), (17, 300)])
def test_the_gram_matrix(count, length, dtype):
    if dtype == torch.bfloat16 and count > 8:
        pytest.skip("the interpreter multiplies bfloat16 as the integers of its bits; tests/accelerator tries it")
    gradients = vectors(count, length, dtype)
    assert_gram(kernels.gram_matrix(gradients, None), gradients)


@pytest.mark.parametrize("count", [2, 9])
def test_the_gram_matrix_of_scaled_gradients_whose_squares_overflow(count):
    gradients = vectors(count, 100)
    scale = torch.tensor(2.0**100)
    found = kernels.gram_matrix([gradient * scale for gradient in gradients], scale)
    assert found.isfinite().all()
    assert_gram(found, gradients)


@pytest.mark.parametrize("count", [2, 9])
def test_a_gradient_that_is_not_finite_spoils_its_own_products_alone(count):
    gradients = vectors(count, 100)
    gradients[1][7] = torch.inf
    found = kernels.gram_matrix(gradients, None)
    others = [task for task in range(count) if task != 1]
    assert not found[1].isfinite().any()
    assert found[others][:, others].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "length"), [(1, 1), (2, 1024), (5, 2500), (32, 100)])
def test_the_weighted_sum(count, length, dtype):
    gradients = vectors(count, length, dtype)
    weights = torch.linspace(0.5, 2.0, count)
    expected = (torch.stack(gradients).double() * weights.double().unsqueeze(1)).sum(0)
    found = kernels.weighted_sum(gradients, weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("count", [2, 9])
def test_empty_gradients(count):
    empty = [torch.empty(0, 3)] * count
    assert kernels.gram_matrix(empty, None).equal(torch.zeros(count, count))
    assert kernels.weighted_sum(empty, torch.ones(count)).shape == (0, 3)


def test_each_stream_has_a_workspace_that_grows(monkeypatch):
    stream = 1
    monkeypatch.setattr(kernels, "_workspaces", {})
    monkeypatch.setattr(torch._C, "_cuda_isCurrentStreamCapturing", lambda: False, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: stream, raising=False)
    like = SimpleNamespace(get_device=lambda: 0, new_zeros=torch.zeros, new_empty=torch.empty)
    counter, few = kernels._workspace(like, 8)
    assert counter == 0
    assert len(few) == 8
    assert kernels._workspace(like, 4)[1] is few
    assert len(kernels._workspace(like, 16)[1]) == 16
    assert len(kernels._workspace(like, 8)[1]) == 16
    kept, stream = kernels._workspace(like, 8), 2
    assert all(own is not other for own, other in zip(kernels._workspace(like, 8), kept, strict=True))


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("preferring", [False, True])
@pytest.mark.parametrize("divisor", [None, torch.tensor(2.0**70)])
def test_a_step_at_once_is_its_three_parts_one_after_the_other(module, count, preferring, divisor):
    gradients = vectors(count, 9000)
    if divisor is not None:
        gradients = [gradient * divisor for gradient in gradients]
    gradients[-1] = gradients[-1] * (torch.inf if count > 2 else 1)
    options = BalanceOptions(
        preferences=torch.linspace(0.5, 2.0, count) if preferring else None,
        gamma=0.3, pull=0.1 / count, beta=0.1, unit=1 / count, cosine=True,
    )  # fmt: skip

    def state() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        last = torch.zeros(count, count), torch.zeros(count), torch.zeros(count, dtype=torch.bool)
        return torch.rand(2, count, generator=torch.Generator().manual_seed(0)), torch.full((count,), 1 / count), last

    averages, balance, last = state()
    gram = module.gram_matrix(gradients, divisor)
    weights, present = module.balance_step(gram, averages, balance, last, known=None, options=options)
    expected = [module.weighted_sum(gradients, weights), weights, averages, balance, *last]
    assert last[2].equal(present)
    averages, balance, last = state()
    found = module.balanced_sum(gradients, divisor, averages, balance, last, options=options)
    for own, part in zip([*found, averages, balance, *last], expected, strict=True):
        torch.testing.assert_close(own, part, rtol=1e-6, atol=0, equal_nan=True)


def test_the_usual_options_take_their_step_at_once(take, module):
    take(module)
    for options in ({}, {"direction": "none"}, {"reduction": "mean"}, {"task_weights": [3.0, 1.0]}):
        fork = MultiBalance(2, **options)
        before = fork.averages.clone()
        assert fork.step_at_once(vectors(2, 50), None) is not None
        assert not fork.averages.equal(before)


class Own(MultiBalance):
    """A subclass, which may have changed any part of the step."""


@pytest.mark.parametrize(
    "fork",
    [
        lambda: MultiBalance(2, overlap=True),
        lambda: MultiBalance(2, gram_every=2),
        lambda: MultiBalance(2, clip=3.0),
        lambda: MultiBalance(2, magnitude="own"),
        lambda: MultiBalance(2, direction="raw"),
        lambda: MultiBalance(2).double(),
        lambda: Own(2),
        lambda: Fork(2),
    ],
)
def test_all_others_do_not_and_are_left_as_they_were(fork, take, module):
    take(module)
    made = fork()
    before = {name: value.clone() for name, value in made.state_dict().items() if isinstance(value, Tensor)}
    assert made.step_at_once(vectors(2, 50), None) is None
    assert all(made.state_dict()[name].equal(value) for name, value in before.items())


OPTIONS = {
    "default": {},
    "no direction": {"direction": "none"},
    "mean": {"reduction": "mean"},
    "preferences": {"task_weights": [3.0, 1.0, 2.0], "gamma": 0.3, "rho": 1.0, "beta": 2.0},
    "overlap": {"overlap": True},
    "every other step": {"gram_every": 2},
}


def trained(options: dict[str, object], *, stacked: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return what flows on in each step, and the state after them; tasks are absent, one even at first, or overflow."""
    fork = MultiBalance(3, **options)
    generator = torch.Generator().manual_seed(0)
    sent = []
    for step in range(12):
        z = torch.randn(5, 7, generator=generator).requires_grad_()
        copies = fork.stacked(z).unbind() if stacked else fork(z)
        here = [task for task in range(3) if (step, task) not in {(0, 2), (1, 2), (4, 0), (4, 1), (4, 2), (6, 1)}]
        losses = [(copies[task] * torch.randn(5, 7, generator=generator)).sum() * 4.0**task for task in here]
        if step == 8:
            losses[1] = losses[1] * torch.inf
        torch.stack([*losses, z.sum() * 0]).sum().backward()
        sent.append(z.grad)
    state = fork.state_dict() | {"gram": fork.last_gram, "weights": fork.last_weights, "present": fork.last_present}
    return sent, {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_multibalance_trains_as_with_the_plain_form(options, stacked, module, take):
    take(None)
    expected = trained(options, stacked=stacked)
    take(module)
    found = trained(options, stacked=stacked)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4, equal_nan=True)


def test_a_fork_with_its_own_weigh_is_asked_for_the_weights(module, take):
    take(module)

    class Own(MultiBalance):
        def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
            return torch.full_like(gram[0], 7.0)

    for fork in (Own(2), MultiBalance(2, magnitude="equal"), MultiBalance(2, direction="raw"), Fork(2)):
        z = torch.ones(3, requires_grad=True)
        first, second = fork(z)
        (first.sum() + 3 * second.sum()).backward()
        plainly = torch.stack([torch.ones(3), torch.full((3,), 3.0)]).T @ fork.last_weights
        torch.testing.assert_close(z.grad, plainly)
        assert (fork.last_weights == 7.0).all() == isinstance(fork, Own)
