"""Stacks of layers: their shapes, and what they compute."""

from __future__ import annotations

import pytest
import torch

from equipoise.ranking.layers import mlp, tower


def test_mlp_is_linear_then_relu_for_every_width() -> None:
    net = mlp(5, (4, 3))
    x = torch.randn(2, 5)
    first, second = net[0], net[2]
    expected = (x @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
    torch.testing.assert_close(net(x), expected.relu())


def test_mlp_without_widths_changes_nothing() -> None:
    x = torch.randn(2, 5)
    assert torch.equal(mlp(5, ())(x), x)
    assert list(mlp(5, ()).parameters()) == []


@pytest.mark.parametrize("widths", [(), (4,), (4, 3)])
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_tower_ends_in_one_unbounded_logit_per_row(widths: tuple[int, ...], rows: int) -> None:
    net = tower(5, widths)
    x = torch.randn(rows, 5)
    hidden = mlp(5, widths)
    hidden.load_state_dict({name: value for name, value in net.state_dict().items() if name in hidden.state_dict()})
    last = net[-2]
    assert net(x).shape == (rows,)
    torch.testing.assert_close(net(x), (hidden(x) @ last.weight.T + last.bias).squeeze(1))


def test_a_width_under_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1, found \(4, 0\)"):
        mlp(5, (4, 0))
