"""Every model trains on two ranks as in one process with the whole batch, replicated and fully sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, Learner, World
from tests.distributed.gloo import on_ranks
from tests.ranking.models.cuts import make_batch
from tests.ranking.models.samples import OWN, SCHEMA, SMALL, needed

# Batch normalisation sees the rank's rows alone; all ranks predict with the running statistics of the first.
NORMALISES = {"home", "star"}
OTHERS = [name for name in OWN if name not in {"shared-bottom", "mmoe", "ple"}]  # these have a test of their own
CASES = [
    *((sharding, "multibalance", model) for sharding in ("ddp", "fsdp") for model in OTHERS),
    *(("ddp", "single-task", model) for model in ("escm2", "aitm")),
]


def logits_after_training(case: tuple[str, str, str], world: World | None) -> Tensor:
    sharding, method, model = case
    options = {
        option: list(size) if isinstance(size, tuple) else size
        for option, size in (SMALL.get(model, {}) | needed(model, SCHEMA)).items()
    }
    sharding = "ddp" if world is None else sharding
    settings = TrainingSettings.of(model=model, model_options=options, lr=0.01, seed=3, sharding=sharding)
    learner = Learner(SCHEMA, METHODS[method], settings, world=world)
    for rows in (32, 31, 32):  # shares of other sizes
        batch = make_batch(SCHEMA, rows)
        batch.labels[::5, 2] = torch.nan
        learner.step(batch)
    return learner.logits(make_batch(SCHEMA, 8))


def work(rank: int) -> dict[str, Tensor]:
    return {"/".join(case): logits_after_training(case, World(rank, 2)) for case in CASES}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return on_ranks(2, Path(tmp_path_factory.mktemp("ranks")), work)


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_a_model_trains_on_two_ranks_as_on_one(case: tuple[str, str, str], found: list[dict[str, Tensor]]) -> None:
    first, second = (of_rank["/".join(case)] for of_rank in found)
    assert first.isfinite().all()
    torch.testing.assert_close(first, second)
    if case[2] not in NORMALISES:
        torch.testing.assert_close(first, logits_after_training(case, None), rtol=1e-3, atol=1e-4)
