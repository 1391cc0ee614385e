import pytest
import torch

from equipoise.errors import SettingError
from equipoise.loss_weighting import LossDiscrepancyControl, loss_discrepancy_control

LOSSES = torch.tensor([0.3, 2.0, 0.9], dtype=torch.float64)
ALL = torch.tensor([True, True, True])


def test_the_model_sees_losses_and_discrepancy_and_the_weights_the_discrepancy_alone() -> None:
    weighting = loss_discrepancy_control(["a", "b", "c"], penalty=0.05).double()
    logits = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64)
    weighting.scalarizer.logits.data.copy_(logits)
    found = weighting.weigh(LOSSES, ALL)
    s, values = logits.clone().requires_grad_(), LOSSES.clone().requires_grad_()
    parts = torch.softmax(s, 0) * values
    discrepancy = (parts[0] - parts[1]).abs() + (parts[1] - parts[2]).abs()
    (of_logits,) = torch.autograd.grad(0.05 * discrepancy, s, retain_graph=True)
    (of_losses,) = torch.autograd.grad(parts.sum() + 0.05 * discrepancy, values)
    torch.testing.assert_close(found, of_losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(weighting.scalarizer.logits.grad, of_logits, rtol=1e-12, atol=0)


def test_the_weights_bring_weighted_losses_together() -> None:
    weighting = loss_discrepancy_control(["a", "b", "c"]).double()
    adam = torch.optim.Adam(weighting.learned_parameters(), lr=0.01)
    for _ in range(600):
        adam.zero_grad()
        weighting.weigh(LOSSES, ALL)
        adam.step()
    weighted = weighting.scalarizer.logits.detach().softmax(0) * LOSSES
    assert weighted.max() / weighted.min() < 1.05


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(SettingError, match=r"expected a finite penalty of at least 0; found -0\.1"):
        LossDiscrepancyControl(2, penalty=-0.1)
