"""The kernels in C compute the same for every width of vectors and any number of threads.

``test_gram.py`` holds them against float64, and ``test_kernels.py`` the step of MultiBalance against its plain form.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from equipoise import MultiBalance
from equipoise.forks.gram import gram_matrix, weighted_sum
from equipoise.forks.kernel_choice import LIBRARY, kernels_for

SOURCE = LIBRARY.with_name("cpu_kernels.c")

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="built without a C compiler")


@pytest.fixture(scope="module", params=[4, 8, 16])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library for processors that take so many numbers at a time, without a warning."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("kernels") / f"{request.param}.so"
    options = [
        "-O2",
        "-std=gnu11",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        f"-DWIDEST={request.param}",
    ]
    subprocess.run([compiler, *options, "-o", str(built), str(SOURCE), "-lm"], check=True)
    return built


@pytest.fixture
def threads() -> Iterator[None]:
    """Put back the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(count: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count + length)
    return [torch.randn(length, generator=generator) * 3.0 ** (row % 5) for row in range(count)]


# Below a vector, around blocks, parts and tiles, and more parts than partial sums.
SIZES = [(1, 1), (2, 15), (3, 1024), (4, 1025), (5, 16_384), (8, 16_401), (9, 50_000), (33, 700), (2, 16_384 * 257 + 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("count", "length"), SIZES)
def test_every_width_computes_what_float64_does(count, length, dtype, library, monkeypatch):
    from equipoise.forks import cpu_kernels

    monkeypatch.setattr(cpu_kernels, "_library", cpu_kernels.loaded(library))
    gradients, weights = [row.to(dtype) for row in rows(count, length)], torch.linspace(-0.5, 2.0, count)
    exact = torch.stack(gradients).double()
    products, lengths = exact @ exact.T, exact.norm(dim=1)
    wrong = ((cpu_kernels.gram_matrix(gradients, None) - products) / lengths / lengths[:, None]).abs().max()
    assert wrong < (1e-6 if dtype == torch.float32 else 1e-5)  # squares of few bits round up or down for long
    found = cpu_kernels.weighted_sum(gradients, weights)
    assert found.dtype == dtype
    rounding = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 4e-3, "atol": 1e-4}
    torch.testing.assert_close(found.double(), weights.double() @ exact, **rounding)


def test_bfloat16_is_rounded_as_pytorch_rounds_it(library, monkeypatch):
    from equipoise.forks import cpu_kernels

    monkeypatch.setattr(cpu_kernels, "_library", cpu_kernels.loaded(library))
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    some = every[every.isfinite() & (every.abs() > 1e-30)]
    for weight in (1.0, 1 + 2**-8, 1 + 3 * 2**-8, -0.7, 1e30, torch.inf):
        found = cpu_kernels.weighted_sum([some], torch.tensor([weight]))
        assert torch.equal(found, (some.float() * weight).bfloat16())
    assert cpu_kernels.weighted_sum([every], torch.tensor([1.0]))[every.isnan()].isnan().all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("length", [100, 200_001, 16_384 * 300])
def test_any_number_of_threads_finds_the_same(length):
    from equipoise.forks import cpu_kernels

    gradients, weights = rows(3, length), torch.tensor([0.5, 2.0, -1.0])
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append((cpu_kernels.gram_matrix(gradients, None), cpu_kernels.weighted_sum(gradients, weights)))
    assert all(torch.equal(one, other) for pair in found[1:] for one, other in zip(found[0], pair, strict=True))


@pytest.mark.parametrize("count", [2, 9])
def test_a_gradient_that_is_not_finite_spoils_its_own_products_alone(count):
    from equipoise.forks import cpu_kernels

    gradients = rows(count, 100)
    gradients[1][7] = torch.inf
    found = cpu_kernels.gram_matrix(gradients, None)
    others = [task for task in range(count) if task != 1]
    assert not found[1].isfinite().any()
    assert found[others][:, others].isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "taken"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.float16, False), (torch.float64, False)],
    ids=str,
)
def test_they_are_taken_for_float32_and_bfloat16_alone(dtype, taken):
    assert (kernels_for([torch.ones(2, dtype=dtype)]) is not None) == taken
    assert (kernels_for(torch.ones(2, 3, dtype=dtype)) is not None) == taken


def test_a_state_of_another_dtype_is_refused_and_not_misread():
    fork = MultiBalance(2)
    fork.load_state_dict(MultiBalance(2).double().state_dict(), assign=True)
    z = torch.ones(3, requires_grad=True)
    with pytest.raises(TypeError, match=r"expected 4 numbers of torch.float32.*found a tensor of torch.float64"):
        sum(branch.sum() for branch in fork(z)).backward()
    fork.double()
    sum(branch.sum() for branch in fork(z)).backward()
    assert fork.last_weights.tolist() == [1.0, 1.0]


def test_a_view_with_the_other_sign_is_read_as_what_it_is():
    numbers = torch.complex(torch.zeros(3), torch.ones(3)).conj().imag
    assert numbers.is_neg()
    gradients = [numbers, torch.ones(3)]
    assert gram_matrix(gradients).tolist() == [[3.0, -3.0], [-3.0, 3.0]]
    assert weighted_sum(gradients, torch.tensor([2.0, 1.0])).tolist() == [-1.0, -1.0, -1.0]
