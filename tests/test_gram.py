"""The fork's two passes over gradients, against brute force in float64 on every path they can take."""

import pytest
import torch

from equipoise._gram import gram_matrix, weighted_sum

# around the limits between single dot products, strips and one product
COUNTS = [1, 2, 4, 5, 8, 16, 17, 40]


def gradients(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("shape", [(3,), (33, 128), (5000, 40)], ids=str)
def test_gram_matrix_is_that_of_float64(count: int, shape: tuple[int, ...]) -> None:
    g = gradients(count, shape, torch.float32)
    rows = torch.stack(g).double().flatten(1)
    expected = rows @ rows.T
    found = gram_matrix([[piece] for piece in g])
    assert found.dtype == torch.float32
    scale = expected.diagonal().sqrt()
    assert ((found.double() - expected) / (scale * scale.unsqueeze(1))).abs().max() < 1e-6
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("count", [2, 8, 20])
def test_pieces_add_up(count: int) -> None:
    first, second = gradients(count, (7, 5), torch.float64), gradients(count, (2, 3, 4), torch.float64)
    rows = torch.cat((torch.stack(first).flatten(1), torch.stack(second).flatten(1)), dim=1)
    torch.testing.assert_close(gram_matrix(list(zip(first, second, strict=True))), rows @ rows.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 8, 20])
def test_half_precision_is_multiplied_and_summed_in_float32(dtype: torch.dtype, count: int) -> None:
    g = [300 * piece for piece in gradients(count, (300, 50), dtype)]  # squares overflow float16
    rows = torch.stack(g).double().flatten(1)
    found = gram_matrix([[piece] for piece in g])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), rows @ rows.T, rtol=1e-5, atol=1e-5 * float((rows @ rows.T).amax()))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_gradients_of_any_layout_are_taken(count: int) -> None:
    g = [piece.T for piece in gradients(count, (30, 20), torch.float64)]
    g[0] = torch.ones(()).double().expand(20, 30)
    rows = torch.stack(g).flatten(1)
    torch.testing.assert_close(gram_matrix([[piece] for piece in g]), rows @ rows.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weighted_sum_keeps_shape_and_dtype_and_leaves_gradients_alone(dtype: torch.dtype) -> None:
    g = gradients(5, (4, 3), dtype)
    before = [piece.clone() for piece in g]
    weights = torch.tensor([0.5, 2.0, 0.0, 3.0, 1e-3])
    found = weighted_sum(g, weights.unbind())
    expected = sum(float(weight) * piece.double() for weight, piece in zip(weights, g, strict=True))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps * 4, atol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(g, before, strict=True))


def test_small_weights_of_half_precision_do_not_underflow() -> None:
    g = [torch.full((3,), 60_000.0, dtype=torch.float16)]
    found = weighted_sum(g, [torch.tensor(1e-9)])  # 1e-9 itself is 0 in float16
    torch.testing.assert_close(found.float(), torch.full((3,), 6e-5), rtol=1e-2, atol=0)
