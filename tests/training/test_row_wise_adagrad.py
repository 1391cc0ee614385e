"""Row-wise Adagrad against a float64 loop over rows, with dense and sparse gradients."""

import math

import pytest
import torch
from torch import nn

from equipoise.training.row_wise_adagrad import RowWiseAdagrad

LR, EPS, STEPS = 0.3, 1e-3, 6  # a large eps, so that its place in the formula shows


def steps(*, sparse: bool) -> tuple[nn.Embedding, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return a table, and for some steps the ids looked up (some twice) with a coefficient for each of them."""
    generator = torch.Generator().manual_seed(0)
    table = nn.Embedding(12, 4, sparse=sparse, dtype=torch.float64)
    with torch.no_grad():
        table.weight.copy_(torch.randn(12, 4, generator=generator))
    batches = []
    for _ in range(STEPS):
        ids = torch.randint(0, 9, (7,), generator=generator)  # rows 9 to 11 are never looked up
        batches.append((ids, torch.randn(7, 4, generator=generator, dtype=torch.float64)))
    return table, batches


def by_rows(table: list[list[float]], batches: list, decay: float) -> tuple[list[list[float]], list[float]]:
    """Compute the steps again, one row after the other, by the formula of FBGEMM."""
    sums = [0.0] * len(table)
    for ids, coefficients in batches:
        for row in set(ids.tolist()):
            gradient = [
                sum(c for i, c in zip(ids.tolist(), column, strict=True) if i == row) for column in coefficients.T
            ]
            gradient = [float(g) for g in gradient]
            sums[row] += sum(g * g for g in gradient) / len(gradient)
            rate = LR / (math.sqrt(sums[row]) + EPS)
            table[row] = [(1 - LR * decay) * x - rate * g for x, g in zip(table[row], gradient, strict=True)]
    return table, sums


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_steps_are_those_of_a_loop_over_rows(sparse: bool, decay: float) -> None:
    table, batches = steps(sparse=sparse)
    expected, sums = by_rows(table.weight.tolist(), batches, decay)
    optimizer = RowWiseAdagrad(table.parameters(), LR, eps=EPS, weight_decay=decay)
    for ids, coefficients in batches:
        optimizer.zero_grad()
        (table(ids) * coefficients).sum().backward()
        assert table.weight.grad.is_sparse is sparse
        optimizer.step()
    torch.testing.assert_close(table.weight.data, torch.tensor(expected, dtype=torch.float64))
    found = optimizer.state[table.weight]["sum"]
    assert found.shape == (12,)
    torch.testing.assert_close(found, torch.tensor(sums, dtype=torch.float64))


def test_a_row_that_was_never_looked_up_stays_even_without_eps() -> None:
    table, batches = steps(sparse=False)
    before = table.weight.data.clone()
    optimizer = RowWiseAdagrad(table.parameters(), LR, eps=0.0, weight_decay=0.5)
    for ids, coefficients in batches:
        optimizer.zero_grad()
        (table(ids) * coefficients).sum().backward()
        optimizer.step()
    assert torch.equal(table.weight[9:], before[9:])
    assert table.weight.isfinite().all()


def test_training_goes_on_from_a_saved_state() -> None:
    tables = []
    for stop in (None, 3):
        table, batches = steps(sparse=True)
        optimizer = RowWiseAdagrad(table.parameters(), LR)
        for step, (ids, coefficients) in enumerate(batches):
            if step == stop:
                saved = optimizer.state_dict()
                optimizer = RowWiseAdagrad(table.parameters(), 9.0)
                optimizer.load_state_dict(saved)
            optimizer.zero_grad()
            (table(ids) * coefficients).sum().backward()
            optimizer.step()
        tables.append(table.weight.data)
    assert torch.equal(tables[0], tables[1])


def test_what_is_no_table_or_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a matrix of rows, found one of shape \(3,\)"):
        RowWiseAdagrad([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="lr must be finite and from 0 up, found -1"):
        RowWiseAdagrad([nn.Parameter(torch.ones(3, 2))], lr=-1)
