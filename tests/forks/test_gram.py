"""The fork's two passes over gradients, against brute force in float64 on every path they can take."""

import pytest
import torch

from equipoise.forks import gram
from equipoise.forks.gram import gram_matrix, rows_of, squared_lengths, weighted_sum
from equipoise.forks.kernel_choice import LIBRARY
from tests.made_up_device import DeviceTensor, on_host, the_device

BOUND = 2e-6  # of the product of two norms: what a CPU with few accumulators makes of 2**18 numbers in float32
# Around the limits between single dot products, products of rows, and products of groups of rows.
COUNTS = [1, 2, 4, 5, 8, 40, 70]
SHAPES = [(0,), (3,), (33, 128), (1700, 40)]  # nothing, shorter than a strip, than a block, and blocks with a remainder


@pytest.fixture(params=["in C", "plain"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the kernels in C for single precision, as everyone does who has them; then the plain form for all."""
    if request.param == "plain":
        monkeypatch.setattr(gram, "kernels_for", lambda _: None)
    elif not LIBRARY.exists():
        pytest.skip("built without a C compiler")


def gradients(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_matrix_is_that_of_float64(count: int, shape: tuple[int, ...]) -> None:
    g = gradients(count, shape, torch.float32)
    rows = torch.stack(g).double().flatten(1)
    expected = rows @ rows.T
    scale = expected.diagonal().sqrt()
    found = gram_matrix(g)
    assert found.dtype == torch.float32
    assert ((found.double() - expected).abs() <= BOUND * scale * scale.unsqueeze(1)).all()
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 4, 5, 70])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (33, 128), (700, 100)], ids=str)
def test_one_tensor_of_all_gradients_is_taken_as_they_are(count: int, shape: tuple[int, ...], dtype) -> None:
    g, weights = gradients(count, shape, dtype), torch.linspace(0.5, 2.0, count)
    together = torch.stack(g)
    across = together.transpose(0, -1).contiguous().transpose(0, -1)  # rows that are not of one piece
    for divisor in (None, torch.tensor(3.0)):
        expected = gram_matrix(g, divisor)
        norms = expected.diagonal().sqrt()
        for found in (gram_matrix(together, divisor), gram_matrix(across, divisor)):
            assert found.dtype == expected.dtype
            assert ((found - expected).abs() <= BOUND * norms * norms.unsqueeze(1)).all()
        torch.testing.assert_close(squared_lengths(together, divisor), expected.diagonal(), rtol=1e-5, atol=0)
    expected = weighted_sum(g, weights)
    rounding = (
        8 * torch.finfo(dtype).eps * (weights.unsqueeze(1) * rows_of(together).abs()).max() if together.numel() else 0.0
    )
    for found in (weighted_sum(together, weights), weighted_sum(across, weights)):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=float(rounding))


@pytest.mark.parametrize("count", [1, 4, 5])
def test_long_gradients_are_summed_as_precisely_as_short_ones(count: int) -> None:
    """One dot product of so many numbers in float32 is wrong by 5e-4 on some CPUs."""
    numbers = torch.randn(1 << 24, generator=torch.Generator().manual_seed(1))
    found = gram_matrix([numbers] * count).double()
    assert ((found / numbers.double().square().sum() - 1).abs() <= BOUND).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 8, 20])
def test_half_precision_is_multiplied_and_summed_in_float32(dtype: torch.dtype, count: int) -> None:
    g = [300 * piece for piece in gradients(count, (300, 50), dtype)]  # squares overflow float16
    rows = torch.stack(g).double().flatten(1)
    found = gram_matrix(g)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), rows @ rows.T, rtol=1e-5, atol=1e-5 * float((rows @ rows.T).amax()))


@pytest.mark.parametrize("count", [2, 8])
def test_the_divisor_is_taken_out_before_squares_can_overflow(count: int) -> None:
    g = [1e25 * piece for piece in gradients(count, (40, 50), torch.float32)]
    rows = torch.stack(g).double().flatten(1) / 2.0**80
    found = gram_matrix(g, torch.tensor(2.0**80))
    torch.testing.assert_close(found.double(), rows @ rows.T, rtol=1e-5, atol=1e-5 * float((rows @ rows.T).amax()))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_gradients_of_any_layout_are_taken(count: int) -> None:
    g = [piece.T for piece in gradients(count, (30, 20), torch.float64)]
    g[0] = torch.ones(()).double().expand(20, 30)
    rows = torch.stack(g).flatten(1)
    torch.testing.assert_close(gram_matrix(g), rows @ rows.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_weighted_sum_keeps_shape_and_dtype_and_leaves_gradients_alone(dtype: torch.dtype, count: int) -> None:
    g = gradients(count, (4, 3), dtype)
    before = [piece.clone() for piece in g]
    weights = torch.tensor([0.5, 2.0, 0.0, 3.0, 1e-3])[:count]
    expected = sum(float(weight) * piece.double() for weight, piece in zip(weights, g, strict=True))
    tolerance = {"rtol": torch.finfo(dtype).eps * 4, "atol": 1e-5}
    found = weighted_sum(g, weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, **tolerance)
    with torch.enable_grad():
        torch.testing.assert_close(weighted_sum(g, weights).double(), expected, **tolerance)
    assert all(torch.equal(*pair) for pair in zip(g, before, strict=True))


def test_small_weights_of_half_precision_do_not_underflow() -> None:
    g = [torch.full((3,), 60_000.0, dtype=torch.float16)]
    found = weighted_sum(g, torch.tensor([1e-9]))  # 1e-9 itself is 0 in float16
    torch.testing.assert_close(found.float(), torch.full((3,), 6e-5), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_both_passes_on_an_accelerator_are_those_on_the_cpu(dtype: torch.dtype, count: int) -> None:
    g = gradients(count, (20_000,), dtype)  # two strips and a remainder
    weights = torch.linspace(0.5, 2.0, count)
    expected = gram_matrix(g), weighted_sum(g, weights)
    with the_device() as waits:
        there = [DeviceTensor(piece) for piece in g]
        found = on_host(gram_matrix(there)), on_host(weighted_sum(there, DeviceTensor(weights)))
        together = DeviceTensor(torch.stack(g))
        stacked = on_host(gram_matrix(together)), on_host(weighted_sum(together, DeviceTensor(weights)))
    assert not waits
    assert found[1].dtype == dtype
    for pair in (found, stacked):
        torch.testing.assert_close(pair, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_sum_of_half_precision_is_the_one_that_is_not(backend: str) -> None:
    g, weights = gradients(3, (50,), torch.bfloat16), torch.tensor([0.5, 2.0, 3.0])
    compiled = torch.compile(weighted_sum, backend=backend, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(g, weights), weighted_sum(g, weights))
