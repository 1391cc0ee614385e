"""Nested tasks: the log-odds of a product of probabilities, and the messages where no task is nested."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import product

import pytest
import torch

from equipoise.ranking.models.nested_tasks import log_odds_of_product, parents_of, parents_over_all_rows
from equipoise.schema import Schema, Task

SIZES = [-700.0, -50.0, -3.0, -1e-3, 0.0, 1.0, 36.0, 50.0, 700.0]


def log_odds_in_many_digits(*logits: float) -> float:
    """ln(P / (1 − P)) of the product P of σ(logit), in 700 digits."""
    with localcontext() as context:
        context.prec = 700
        chance = Decimal(1)
        for logit in logits:
            chance /= 1 + (-Decimal(logit)).exp()
        return float((chance / (1 - chance)).ln())


@pytest.mark.parametrize("a", SIZES)
@pytest.mark.parametrize("b", SIZES)
def test_the_log_odds_of_a_product_are_exact_at_any_size(a: float, b: float) -> None:
    found = log_odds_of_product([torch.tensor(logit, dtype=torch.float64) for logit in (a, b)])
    assert float(found) == pytest.approx(log_odds_in_many_digits(a, b), rel=1e-14, abs=1e-14)
    single = log_odds_of_product([torch.tensor(logit) for logit in (a, b)])
    assert float(single) == pytest.approx(log_odds_in_many_digits(a, b), rel=1e-6, abs=1e-6)


def test_a_chain_of_products_is_that_of_all_in_any_order() -> None:
    logits = [torch.tensor(logit, dtype=torch.float64) for logit in (-3.0, 2.0, 50.0, 0.5)]
    expected = log_odds_in_many_digits(*map(float, logits))
    assert float(log_odds_of_product(logits)) == pytest.approx(expected, rel=1e-14)
    assert float(log_odds_of_product(logits[::-1])) == pytest.approx(expected, rel=1e-14)
    assert log_odds_of_product(logits[:1]) is logits[0]


def test_gradients_agree_with_finite_differences_and_stay_finite_at_any_size() -> None:
    a, b = torch.tensor(list(product([-50.0, -2.0, 0.0, 3.0, 50.0], repeat=2)), dtype=torch.float64).t()
    inputs = (a.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(lambda *logits: log_odds_of_product(logits), inputs)
    far = [torch.tensor([-1e4, 1e4, 1e4], requires_grad=True), torch.tensor([-1e4, -1e4, 1e4], requires_grad=True)]
    log_odds_of_product(far).sum().backward()
    expected = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.5]])
    torch.testing.assert_close(torch.stack([logit.grad for logit in far]), expected, rtol=0, atol=1e-3)


def schema(*tasks: Task) -> Schema:
    return Schema([], [], tasks)


def test_parents_are_given_by_place() -> None:
    nested = schema(Task("buy", after="click", over="all"), Task("like"), Task("click"), Task("view", after="buy"))
    assert parents_of(nested, "AITM") == [2, None, None, 0]


def test_a_regression_is_not_multiplied() -> None:
    mixed = schema(Task("click"), Task("buy", after="click", over="all"), Task("spend", kind="regression", after="buy"))
    assert parents_over_all_rows(mixed, "ESMM") == [None, 0, None]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([Task("click"), Task("like")], r"ESMM needs a task that is .* found none in click, like\. Give .*`after`"),
        (
            [Task("click"), Task("buy", after="click"), Task("refund", after="buy")],
            "ESMM learns nested tasks over all rows, .* found `over: parent` in buy, refund. Set `over: all` there",
        ),
        ([Task("click"), Task("spend", kind="regression", after="click")], "ESMM needs a binary task"),
    ],
)  # fmt: skip
def test_a_schema_without_a_task_nested_over_all_rows_is_refused_with_what_to_write(
    tasks: list[Task], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parents_over_all_rows(schema(*tasks), "ESMM")
