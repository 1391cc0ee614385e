"""Two ranks train on regressions and on rows of unequal importance as one process does."""

import pytest
import torch

from equipoise.methods import METHODS
from equipoise.schema import Batch, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import Learner, World
from tests.distributed.gloo import on_ranks

SCHEMA = Schema(
    [], [Numeric("age")], [Task("click", positive_weight=2.0), Task("seconds", kind="regression", loss="huber")]
)
NAMES = ("equal", "multibalance", "pub")


def train(name: str, world: World) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    learner = Learner(SCHEMA, METHODS[name], TrainingSettings.of(lr=0.01, seed=3), world=world)
    for _ in range(6):
        age = torch.randn(32, 1, generator=generator)
        labels = torch.cat([(age > 0).float(), 2 * age], dim=1)
        labels[torch.rand(32, 2, generator=generator) < 0.4] = torch.nan
        importance = torch.rand(32, generator=generator) * torch.linspace(0, 3, 32)  # far more on the second rank
        learner.step(Batch(torch.zeros(32, 0, dtype=torch.int64), age, labels, torch.ones(32), importance))
    probe = torch.linspace(-2, 2, 9)[:, None]
    return learner.logits(Batch(torch.zeros(9, 0, dtype=torch.int64), probe, torch.ones(9, 2), torch.ones(9)))


def work(rank: int) -> dict:
    return {name: train(name, World(rank, 2)) for name in NAMES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), work)


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_with_rows_of_unequal_importance_train_as_one_process(ranks: list[dict], name: str) -> None:
    one, other = (found[name] for found in ranks)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, train(name, World()), rtol=1e-5, atol=1e-5)
