import copy

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.forks import Fork
from equipoise.loss_weighting import GradNorm, gradnorm
from equipoise.methods import Method, MethodError, parse_method
from equipoise.settings import TrainingSettings
from equipoise.training import Learner
from tests.methods.test_catalogue import SCHEMA, batch

TASKS = ("click", "like", "buy")
ALL = torch.tensor([True, True, True])


def rows(step: int) -> Tensor:
    """Return made-up gradients of the unweighted losses, shape [3, 6], float64."""
    generator = torch.Generator().manual_seed(step)
    scale = torch.tensor([[1.0], [0.02], [5.0]], dtype=torch.float64)
    return scale * torch.randn(3, 6, generator=generator, dtype=torch.float64)


def losses(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.rand(3, generator=generator, dtype=torch.float64) + torch.tensor([0.1, 0.5, 2.0])


def step_of(weighting, step: int, present: Tensor = ALL) -> Tensor:
    """Make a step of made-up gradients that the weights multiply; return the weights with which it was made."""
    weights = weighting.weigh(losses(step), present)
    gradients = torch.where(present.unsqueeze(1), weights.unsqueeze(1) * rows(step), 0.0)
    weighting.after_backward(gradients @ gradients.T)
    return weights


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_it_is_the_papers_algorithm_by_autograd_and_torchs_adam(alpha: float) -> None:
    weighting = gradnorm(TASKS, alpha=alpha).double()
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weights], lr=0.025)
    initial = losses(0)
    for step in range(60):
        torch.testing.assert_close(step_of(weighting, step), weights.detach(), rtol=1e-10, atol=0)
        norms = weights * rows(step).norm(dim=1)
        progress = losses(step) / initial
        target = (norms.mean() * (progress / progress.mean()) ** alpha).detach()
        adam.zero_grad()
        (norms - target).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            weights.mul_(3 / weights.sum())
    assert weights.max() > 2  # it has moved far


def test_without_pull_all_lengths_become_equal() -> None:
    weighting = gradnorm(TASKS, alpha=0.0).double()
    for _ in range(600):
        weights = step_of(weighting, 5)
    lengths = weights * rows(5).norm(dim=1)
    assert lengths.max() / lengths.min() < 1.6  # a step of the rate moves the smallest weight by a share of itself


def test_a_task_that_is_behind_gets_the_longer_gradient() -> None:
    weighting = gradnorm(("a", "b"), alpha=1.0).double()
    same = torch.eye(2, dtype=torch.float64)
    for step in range(400):
        found = torch.tensor([1.0, 1.0 if step == 0 else 0.25], dtype=torch.float64)  # the second has learned
        weights = weighting.weigh(found, ALL[:2])
        weighting.after_backward(same * weights * weights.unsqueeze(1))
    assert weights[0] / weights[1] == pytest.approx(4, rel=0.1)


def test_an_absent_task_keeps_its_weight_and_the_others_their_sum() -> None:
    weighting = gradnorm(TASKS).double()
    for step in range(20):
        step_of(weighting, step)
    before, adam = weighting.scalarizer.weights.clone(), copy.deepcopy(weighting.scalarizer.adam.state_dict())
    for step in range(20, 30):
        step_of(weighting, step, torch.tensor([True, False, True]))
    after = weighting.scalarizer.weights
    assert after[1] == before[1]
    assert after[0] != before[0]
    assert after.sum() == pytest.approx(3)
    assert all(adam[name][1] == value[1] for name, value in weighting.scalarizer.adam.state_dict().items())
    step_of(weighting, 30, torch.tensor([False, False, False]))
    assert torch.equal(weighting.scalarizer.weights, after)


def test_the_first_loss_of_a_task_that_comes_late_is_its_first_with_a_label() -> None:
    weighting = gradnorm(TASKS).double()
    for step in range(3):
        step_of(weighting, step, torch.tensor([True, True, step == 2]))
    expected = torch.stack([losses(0)[0], losses(0)[1], losses(2)[2]])
    assert torch.equal(weighting.scalarizer.initial, expected)


def test_preferences_stay_although_lengths_are_equalised() -> None:
    preferring, equal = gradnorm(TASKS, task_weights=[9, 1, 2]).double(), gradnorm(TASKS).double()
    for step in range(500):
        found, plain = step_of(preferring, step), step_of(equal, step)
    torch.testing.assert_close(found, plain * torch.tensor([9.0, 1.0, 2.0]) / 4)


def learner(name: str, **settings) -> Learner:
    return Learner(SCHEMA, parse_method(name), TrainingSettings.of(lr=0.01, seed=2, **settings))


class TwoForks(nn.Module):
    """A model of two shared layers side by side, each with a fork."""

    def __init__(self, schema, fork) -> None:
        super().__init__()
        self.bottoms = nn.ModuleList(nn.Linear(len(schema.numeric), 4) for _ in range(2))
        self.forks = nn.ModuleList(fork() for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in schema.tasks)

    def forward(self, categorical: Tensor, numeric: Tensor) -> list[Tensor]:
        branches = [fork(bottom(numeric)) for fork, bottom in zip(self.forks, self.bottoms, strict=True)]
        return [head(torch.cat(pair, 1)).squeeze(1) for head, *pair in zip(self.heads, *branches, strict=True)]


@pytest.mark.parametrize(("model", "count"), [("ple", 1), (f"{__name__}:TwoForks", 2)])
def test_in_a_training_it_is_shown_the_gradients_at_all_forks(model: str, count: int) -> None:
    trained = learner("gradnorm", model=model)
    (member,) = trained._members
    forks = [part for part in member.model.modules() if isinstance(part, Fork)]
    assert len(forks) == count
    seen = []
    member.weighting.scalarizer.learn_from_gram = lambda *given: seen.append(given[0])
    trained.step(batch(0))
    torch.testing.assert_close(seen[0], sum(fork.last_gram for fork in forks))
    assert (seen[0].diagonal() > 0).all()


def test_a_loss_times_23_gets_a_smaller_weight_and_its_gradient_the_length_of_the_others() -> None:
    trained = learner("gradnorm:alpha=0.0", loss_scale={"buy": 23.0})
    for step in range(150):
        trained.step(batch(step))
    (member,) = trained._members
    weights, norms = member.weighting.last_weights, member.gram().diagonal().sqrt()
    assert weights[2] < 0.35 * min(weights[0], weights[1])
    assert norms.max() / norms.min() < 3


def test_a_loss_weighting_that_reads_gradients_needs_a_fork() -> None:
    with pytest.raises(MethodError, match="learns from gradients at a fork, found none: give the method a fork too"):
        Method("own", loss_weighting=gradnorm).build_loss_weighting(TASKS)


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"weights_lr": 0.0}, {"alpha": float("inf")}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="expected alpha of at least 0 and weights_lr above 0, both finite"):
        GradNorm(2, **options)
