"""The models on the page about where to fork run, and their forks are placed right."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from equipoise import MultiBalance
from equipoise.ranking.models import RankingModel
from equipoise.schema import Numeric, Schema, Task
from tests.ranking.models.cuts import PRIMES, FixedWeights, assert_cut_is_right, make_batch

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "where-to-fork.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
NUMBERS = Schema([], [Numeric("age"), Numeric("price")], [Task("click"), Task("like")])


def defined(block: str) -> dict[str, object]:
    names: dict[str, object] = {"torch": torch, "MultiBalance": MultiBalance, "RankingModel": RankingModel}
    exec(compile(block, "where-to-fork.md", "exec"), names)
    return names


@pytest.mark.parametrize("name", ["SharedBottom", "MMoE"])
def test_the_models_of_the_page_weigh_shared_gradients_and_leave_the_tasks_own(name: str) -> None:
    (block,) = (block for block in BLOCKS if f"class {name}(" in block)
    kind: Callable[[], torch.nn.Module] = defined(block)[name]
    model = kind()
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    model.fork = torch.nn.Identity()
    model.fork.forward = lambda shared: (shared, shared)
    apart = [
        torch.autograd.grad(model(features)[task].sum(), list(model.parameters()), allow_unused=True)
        for task in range(2)
    ]
    model.fork = FixedWeights(2)
    sum(logit.sum() for logit in model(features)).backward()
    for parameter, *gradients in zip(model.parameters(), *apart, strict=True):
        reached = [gradient is not None for gradient in gradients]
        weights = PRIMES if all(reached) else (1.0, 1.0)
        expected = sum(w * g for w, g in zip(weights, gradients, strict=False) if g is not None)
        torch.testing.assert_close(parameter.grad, expected)


def test_the_own_model_of_the_page_is_cut_right() -> None:
    (block,) = (block for block in BLOCKS if "RankingModel" in block)
    build = defined(block)["build"]

    def seeded(fork: Callable[[], torch.nn.Module] | None) -> RankingModel:
        torch.manual_seed(0)
        return build(NUMBERS, fork)

    assert_cut_is_right(seeded, make_batch(NUMBERS))
