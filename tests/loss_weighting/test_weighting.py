import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchjd.scalarization import DWA, FAMO, IMTLL, STCH, UW, GeometricMean, Scalarizer

from equipoise.loss_weighting import GradNorm, LossDiscrepancyControl, LossWeighting, RandomWeights
from equipoise.monitor import Monitor
from equipoise.training.checkpoint.plain_state import decode, encode

TASKS = ("click", "like", "buy")
ALL = torch.tensor([True, True, True])

SCALARIZERS = {
    "UW": lambda: UW(3),
    "IMTLL": lambda: IMTLL(3),
    "DWA": DWA,
    "FAMO": lambda: FAMO(3),
    "GeometricMean": GeometricMean,
    "STCH": lambda: STCH(0.5),
    "RandomWeights": lambda: RandomWeights(TASKS, seed=5),
    "LDC": lambda: LossDiscrepancyControl(3, penalty=0.2),
    "GradNorm": lambda: GradNorm(3),
    "next batch": lambda: FAMO(3),
}


def weighting_of(name: str, tasks: Sequence[str] = TASKS) -> LossWeighting:
    scalarizer = RandomWeights(tasks, seed=5) if name == "RandomWeights" else SCALARIZERS[name]()
    return LossWeighting(tasks, scalarizer, update_on="next batch" if name == "next batch" else "same batch")


def gram(step: int, present: Tensor) -> Tensor:
    """Return inner products of random gradients of the tasks present."""
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(100 + step)) * torch.tensor([[1.0], [3.0], [0.1]])
    rows = torch.where(present.unsqueeze(1), rows, 0.0)
    return rows @ rows.T


def losses(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(3, generator=generator) + torch.tensor([0.1, 1.0, 5.0])


def present(step: int) -> Tensor:
    return torch.tensor([True, step % 2 == 0, step % 3 != 1])


def train(weighting: LossWeighting, steps: range) -> list[Tensor]:
    """Return the weights of several steps, each of which halves the tasks' losses; an epoch is 4 steps."""
    learned = weighting.learned_parameters()
    optimizer = torch.optim.Adam(learned, lr=0.1) if learned else None
    found = []
    for step in steps:
        if optimizer is not None:
            optimizer.zero_grad()
        found.append(weighting.weigh(losses(step), present(step)).clone())
        weighting.after_backward(gram(step, present(step)))
        if optimizer is not None:
            optimizer.step()
        weighting.after_step(losses(step) / 2, present(step))
        if step % 4 == 3:
            weighting.after_epoch()
    return found


@pytest.mark.parametrize("name", ["UW", "IMTLL", "DWA", "FAMO", "GeometricMean", "STCH", "LDC"])
def test_the_model_gets_the_gradient_of_the_scalarization(name: str) -> None:
    torch.manual_seed(0)
    start = torch.randn(6, dtype=torch.float64)
    targets = torch.randn(3, 6, dtype=torch.float64)

    def task_losses(point: Tensor) -> list[Tensor]:
        return [(point - target).square().mean() + 0.1 for target in targets]

    scalarizer = SCALARIZERS[name]().double()
    twin: Scalarizer = copy.deepcopy(scalarizer)
    weighting = LossWeighting(TASKS, scalarizer).double()
    point, expected = start.clone().requires_grad_(), start.clone().requires_grad_()
    for _ in range(12):
        point.grad = expected.grad = None
        found = task_losses(point)
        weights = weighting.weigh(torch.stack(found), ALL)
        torch.stack([weight * loss for weight, loss in zip(weights, found, strict=True)]).sum().backward()
        twin.zero_grad()
        twin(torch.stack(task_losses(expected))).backward()
        torch.testing.assert_close(point.grad, expected.grad, rtol=1e-12, atol=1e-14)
        for own, other in zip(scalarizer.parameters(), twin.parameters(), strict=True):
            if weighting.learned_parameters():
                torch.testing.assert_close(own.grad, other.grad, rtol=1e-12, atol=1e-14)
                own.data -= 0.1 * own.grad
                other.data -= 0.1 * other.grad
                own.grad = None
        point.data -= 0.3 * point.grad
        expected.data -= 0.3 * expected.grad
        weighting.after_step(torch.stack(task_losses(point)), ALL)
        weighting.after_epoch()
        if isinstance(twin, FAMO):
            twin.update(torch.stack(task_losses(expected)))
        if isinstance(twin, DWA):
            twin.step()
    assert not torch.equal(weighting.last_weights, torch.ones(3))


def test_uncertainty_weighting_is_its_formula() -> None:
    scalarizer = UW(3)
    scalarizer.log_var.data = torch.tensor([0.0, 1.0, -2.0])
    weighting = LossWeighting(TASKS, scalarizer)
    weights = weighting.weigh(torch.tensor([0.5, 2.0, 8.0]), ALL)
    s = scalarizer.log_var.detach()
    torch.testing.assert_close(weights, 0.5 * torch.exp(-s))
    torch.testing.assert_close(scalarizer.log_var.grad, 0.5 - 0.5 * torch.exp(-s) * torch.tensor([0.5, 2.0, 8.0]))


def test_only_what_the_models_optimizer_is_to_learn_is_handed_to_it() -> None:
    assert [p.shape for p in LossWeighting(TASKS, UW(3)).learned_parameters()] == [(3,)]
    assert LossWeighting(TASKS, FAMO(3)).learned_parameters() == []  # it steps them itself
    assert LossWeighting(TASKS, DWA()).learned_parameters() == []
    assert LossWeighting(TASKS, torch.sum).learned_parameters() == []


@pytest.mark.parametrize("name", SCALARIZERS)
def test_an_absent_task_changes_nothing_for_the_others_that_its_last_loss_would_not(name: str) -> None:
    with_gap, without = (weighting_of(name) for _ in range(2))
    last = torch.tensor([0.5, 2.0, 8.0])
    for weighting in (with_gap, without):
        weighting.weigh(last, ALL)
    gap = torch.tensor([0.4, 0.0, torch.nan])
    there = torch.tensor([True, False, True])  # the second has no label, the third is not finite
    found = with_gap.weigh(gap, there)
    expected = without.weigh(torch.tensor([0.4, 2.0, 8.0]), ALL)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected)
    assert with_gap.last_present.tolist() == [True, False, False]
    for parameter in with_gap.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", SCALARIZERS)
def test_a_task_that_never_comes_leaves_all_weights_finite(name: str) -> None:
    weighting = weighting_of(name)
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1)), *weighting.learned_parameters()], lr=0.1)
    for step in range(200):
        optimizer.zero_grad()
        weights = weighting.weigh(losses(step) * torch.tensor([1, 1, 0]), torch.tensor([True, True, False]))
        assert weights.isfinite().all()
        optimizer.step()
        weighting.after_backward(gram(step, torch.tensor([True, True, False])))
        weighting.after_step(losses(step + 1) * torch.tensor([1, 1, 0]), torch.tensor([True, True, False]))
        if step % 10 == 9:
            weighting.after_epoch()
    if name == "UW":
        assert weighting.scalarizer.log_var[2].abs() < 1e-6  # it stays at its start
    if name == "GradNorm":
        assert weighting.scalarizer.weights[2] == 1


@pytest.mark.parametrize("name", SCALARIZERS)
@pytest.mark.parametrize("cut", [1, 6, 8])
def test_a_checkpoint_holds_all_of_the_state(name: str, cut: int) -> None:
    whole = weighting_of(name)
    expected = train(whole, range(cut)) and train(whole, range(cut, 14))
    first = weighting_of(name)
    train(first, range(cut))
    tensors: dict[str, Tensor] = {}
    plain = encode(first.state_dict(), tensors)
    second = weighting_of(name)
    second.load_state_dict(decode(plain, {name: value.clone() for name, value in tensors.items()}))
    for found, there in zip(train(second, range(cut, 14)), expected, strict=True):
        assert torch.equal(found, there)


@pytest.mark.parametrize("name", ["DWA", "FAMO", "RandomWeights", "GradNorm", "next batch"])
def test_state_is_taken_back_to_what_it_was(name: str) -> None:
    weighting = weighting_of(name)
    train(weighting, range(9))
    kept = copy.deepcopy(weighting.state_dict())
    expected = train(weighting, range(9, 14))
    weighting.load_state_dict(kept)
    for found, there in zip(train(weighting, range(9, 14)), expected, strict=True):
        assert torch.equal(found, there)


@pytest.mark.parametrize("name", SCALARIZERS)
def test_a_state_goes_by_the_tasks_names_and_not_by_their_places(name: str) -> None:
    order = [2, 0, 1]
    whole = weighting_of(name)
    train(whole, range(9))
    turned = weighting_of(name, [TASKS[place] for place in order])
    nn.ModuleDict({"part": turned}).load_state_dict(nn.ModuleDict({"part": copy.deepcopy(whole)}).state_dict())
    for step in range(9, 14):
        expected = whole.weigh(losses(step), present(step))[order]
        found = turned.weigh(losses(step)[order], present(step)[order])
        if name != "LDC":  # it compares each task with the next
            torch.testing.assert_close(found, expected)
        matrix = gram(step, present(step))
        whole.after_backward(matrix)
        turned.after_backward(matrix[order][:, order])
        whole.after_step(losses(step) / 2, present(step))
        turned.after_step(losses(step)[order] / 2, present(step)[order])


def test_the_state_of_other_tasks_is_refused_by_name() -> None:
    state = LossWeighting(TASKS, UW(3)).state_dict()
    with pytest.raises(ValueError, match="over click, like, share; found that of click, like, buy"):
        LossWeighting(["click", "like", "share"], UW(3)).load_state_dict(state)


def test_the_state_of_another_scalarizer_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a scalarizer's state of"):
        LossWeighting(TASKS, DWA()).load_state_dict(LossWeighting(TASKS, STCH(1.0)).state_dict())


def test_weights_are_on_the_monitor_under_stable_names_for_tasks_that_are_there() -> None:
    weighting = LossWeighting(TASKS, UW(3))
    monitor = Monitor(nn.Linear(2, 2), loss_weighting=weighting)
    weighting.weigh(losses(0), torch.tensor([True, False, True]))
    assert monitor.read().scalars() == {"loss/weight/click": 0.5, "loss/weight/buy": 0.5}


@pytest.mark.parametrize("name", SCALARIZERS)
def test_averaged_weights_take_a_weighting_with_its_buffers(name: str) -> None:
    """Diagnostics are no state: averaging a boolean one would fail."""
    weighting = weighting_of(name)
    averaged = AveragedModel(weighting, use_buffers=True)
    for step in range(3):
        weighting.weigh(losses(step), present(step))
        averaged.update_parameters(weighting)
    assert int(averaged.n_averaged) == 3


def test_famo_on_the_next_batch_is_torchjds_with_the_losses_of_the_next_batch() -> None:
    weighting, twin = weighting_of("next batch"), FAMO(3)
    for step in range(20):
        found = weighting.weigh(losses(step), ALL)
        values = losses(step).requires_grad_()
        if step:
            twin.update(losses(step))
        (expected,) = torch.autograd.grad(twin(values), values)
        assert torch.equal(found, expected)
        weighting.after_step(losses(step) / 2, ALL)  # it has no use for these
    assert found.std() > 0.01


@pytest.mark.parametrize("update_on", ["same batch", "next batch"])
def test_famo_keeps_preferences_where_the_losses_follow_them(update_on: str) -> None:
    """It makes losses fall at the same rate, so a task that is to fall 9 times as fast must not lose weight for it."""
    wanted = torch.tensor([9.0, 1.0, 2.0]) / 4

    def logits(task_weights: list[float] | None, speed: Tensor) -> Tensor:
        weighting = LossWeighting(TASKS, FAMO(3), update_on=update_on, task_weights=task_weights)
        for step in range(300):
            now, after = (start * torch.exp(-speed * time / 300) for time in (step, step + 0.5))
            weighting.weigh(now, ALL)
            weighting.after_step(after, ALL)
        return weighting.scalarizer._w.detach()

    start, speed = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.3, 0.5])
    equal = logits(None, speed)
    assert equal.std() > 0.1
    torch.testing.assert_close(logits([9.0, 1.0, 2.0], speed * wanted), equal, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["GeometricMean", "IMTLL", "DWA"])
def test_the_scale_of_one_loss_changes_the_shares_only_where_theory_says_so(name: str) -> None:
    """Compared are the shares ``w_m L_m`` of the losses: of GLS at once, of IMTL-L with its scales at rest."""
    shares = []
    for scale in (1.0, 23.0):
        weighting = weighting_of(name)
        found = torch.tensor([0.5, 2.0, 8.0 * scale])
        if name == "IMTLL":
            weighting.scalarizer.log_scale.data.copy_(-found.log())
        weights = weighting.weigh(found, ALL)
        if name == "IMTLL":
            torch.testing.assert_close(weighting.scalarizer.log_scale.grad, torch.zeros(3), rtol=0, atol=1e-6)
        shares.append(weights * found / (weights * found).sum())
    assert torch.allclose(*shares) is (name != "DWA")
