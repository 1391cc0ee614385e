import torch
from torch import Tensor
from torchjd.scalarization import Random

from equipoise.loss_weighting import LossWeighting, RandomWeights
from equipoise.methods import METHODS
from equipoise.settings import TrainingSettings
from equipoise.training import Learner
from tests.methods.test_catalogue import SCHEMA, batch

TASKS = ("click", "like", "buy")
ALL = torch.tensor([True, True, True])


def draws(weighting: LossWeighting, steps: int) -> Tensor:
    return torch.stack([weighting.weigh(torch.ones(3), ALL) for _ in range(steps)])


def test_its_mean_is_equal_weights_and_its_spread_that_of_torchjd() -> None:
    found = draws(LossWeighting(TASKS, RandomWeights(TASKS, seed=0)), 4000)
    torch.testing.assert_close(found.sum(1), torch.ones(4000))
    torch.testing.assert_close(found.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = draws(LossWeighting(TASKS, Random()), 4000)
    torch.testing.assert_close(found.std(0), theirs.std(0), rtol=0.05, atol=0)


def test_draws_depend_on_the_seed_the_step_and_the_task_alone() -> None:
    one, other = (draws(LossWeighting(TASKS, RandomWeights(TASKS, seed=1)), 5) for _ in range(2))
    assert torch.equal(one, other)
    assert len(one.unique(dim=0)) == 5
    turned = draws(LossWeighting(TASKS[::-1], RandomWeights(TASKS[::-1], seed=1)), 5)
    assert torch.equal(turned.flip(1), one)
    assert not torch.equal(one, draws(LossWeighting(TASKS, RandomWeights(TASKS, seed=2)), 5))


def test_the_trainings_seed_is_the_draws_and_the_global_generator_is_left_alone() -> None:
    def weights(seed: int) -> list[float]:
        trained = Learner(SCHEMA, METHODS["rlw"], TrainingSettings.of(seed=seed))
        trained.step(batch(0))
        return trained._members[0].weighting.last_weights.tolist()

    before = torch.get_rng_state()
    first = weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert weights(1) == first
    assert weights(2) != first
