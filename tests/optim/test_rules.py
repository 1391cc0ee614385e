"""The rules' square roots are those of their numbers, to the bit, however small these are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from equipoise.optim import rules
from equipoise.optim.rules import rule_of

KINDS = {
    "adam": torch.optim.Adam,
    "adam-amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True, betas=(0.9, 0.99999)),
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
    "adam, eps 0": lambda p: torch.optim.Adam(p, eps=0.0),
}
# Zero, numbers whose squares are zero or below the smallest normal one, others, and those that are not finite.
GRADIENTS = [0.0, 1e-40, 1e-25, 1e-22, 1e-19, 1e-12, 1e-4, 1.0, 1e15, float("inf"), float("nan")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_small_numbers_have_their_own_roots(kind, dtype, monkeypatch: pytest.MonkeyPatch):
    p = torch.nn.Parameter(torch.ones(len(GRADIENTS), dtype=dtype))
    optimizer = KINDS[kind]([p])
    rule, options = rule_of(optimizer), optimizer.param_groups[0]

    def updates() -> list[Tensor]:
        state, found = rule.initial(p.detach(), options), []
        for step in (1, 2):
            g = torch.tensor([GRADIENTS], dtype=dtype) / step
            found.append(rule.precondition(g, state, step, options))
            update, state = rule.advance(g, p.detach(), state, step, options)
            found += [update, *state.values()]
        return found

    found = updates()
    monkeypatch.setattr(rules, "_root", lambda squares, _: squares.sqrt())
    for own, expected in zip(found, updates(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0, equal_nan=True)
