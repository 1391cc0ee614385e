"""Recipes on two ranks: clipping and averages as in one process, and TorchRec's row-wise Adagrad equal to ours."""

import importlib.util

import pytest
import torch

from equipoise.methods import METHODS
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import Learner, World
from tests.distributed.gloo import on_ranks

SCHEMA = Schema([Categorical("user", 50), Categorical("item", 31)], [Numeric("age")], [Task("click"), Task("like")])
ROW_WISE = {"table_optimizer": "rowwise-adagrad", "table_lr": 0.3}
CASES = {
    "row-wise": ROW_WISE | {"warmup": 0.5},
    "row-wise-sparse": ROW_WISE | {"model_options": {"sparse": True}},
    "clip": {"clip_norm": 0.05, "optimizer": "sgd", "lr": 0.5},
    "clip-fsdp": {"clip_norm": 0.05, "optimizer": "sgd", "lr": 0.5, "sharding": "fsdp"},
    "ema": {"ema": 0.8, "table_decay": 0.5},
}
FUSED = {"torchrec": ROW_WISE | {"warmup": 0.5, "sharding": "table-wise", "model_options": {"embedding_dim": 16}}}
with_torchrec = pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="needs TorchRec")


def train(settings: dict, world: World) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    chosen = TrainingSettings.of(**{"lr": 0.02, "seed": 3} | settings)
    learner = Learner(SCHEMA, METHODS["multibalance"], chosen, world=world, total_steps=8)
    for _ in range(6):
        ids = torch.stack([torch.randint(n, (32,), generator=generator) for n in (50, 31)], dim=1)
        age = torch.randn(32, 1, generator=generator)
        labels = torch.cat([age > 0, ids[:, :1] > 20], dim=1).float()
        learner.step(Batch(ids, age, labels, torch.ones(32)))
    probe = torch.arange(31)[:, None].expand(31, 2)
    return learner.logits(Batch(probe, torch.linspace(-2, 2, 31)[:, None], torch.ones(31, 2), torch.ones(31)))


def work(rank: int) -> dict:
    cases = CASES | (FUSED if importlib.util.find_spec("torchrec") else {})
    return {name: train(settings, World(rank, 2)) for name, settings in cases.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), work)


@pytest.mark.parametrize("name", [*CASES, pytest.param("torchrec", marks=with_torchrec)])
def test_two_ranks_follow_a_recipe_as_one_process_does(ranks: list[dict], name: str) -> None:
    one, other = (found[name] for found in ranks)
    assert torch.equal(one, other)
    alone = {key: value for key, value in (CASES | FUSED)[name].items() if key != "sharding"}
    torch.testing.assert_close(one, train(alone, World()), rtol=1e-4, atol=1e-5)
