"""A checkpoint that four ranks wrote loads on one, two and eight, and training goes on there as on four."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, Learner, World
from equipoise.training.checkpoint.folder import load_checkpoint, save_checkpoint
from tests.distributed.gloo import on_ranks

SCHEMA = Schema([Categorical("user", 50), Categorical("item", 31)], [Numeric("age")], [Task("click"), Task("buy")])
CASES = [
    ("ddp", "multibalance"), ("ddp", "pub-adatask"), ("fsdp", "multibalance"), ("table-wise", "pub"),
    ("row-wise", "multibalance"), ("row-wise+fsdp", "multibalance"),
]  # fmt: skip
ROWS, BEFORE, AFTER = 32, 4, 3
SETTINGS = {"seed": "3"}
PROBE = torch.tensor([[1, 2], [49, 30], [7, 7]])


def batches(seed: int, steps: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        ids = torch.stack([torch.randint(f.cardinality, (ROWS,), generator=generator) for f in SCHEMA.categorical], 1)
        age = torch.randn(ROWS, 1, generator=generator)
        found.append(Batch(ids, age, torch.cat([age > 0, age < 0.3], dim=1).float(), torch.ones(ROWS)))
    return found


def learner(sharding: str, method: str, world: World) -> Learner:
    return Learner(SCHEMA, METHODS[method], TrainingSettings.of(lr=0.01, seed=3, sharding=sharding), world=world)


def logits(trained: Learner) -> torch.Tensor:
    return trained.logits(Batch(PROBE, torch.zeros(3, 1), torch.ones(3, 2), torch.ones(3)))


def go_on(trained: Learner) -> dict:
    """Return predictions now, the losses of further steps, and predictions after them."""
    found = {"loaded": logits(trained)}
    losses = torch.stack([trained.step(batch) for batch in batches(2, AFTER)])
    if trained.world.size > 1:
        dist.all_reduce(losses)
    return found | {"losses": losses / trained.world.size, "trained": logits(trained)}


def write(rank: int, folder: Path) -> dict:
    found = {}
    for sharding, method in CASES:
        trained = learner(sharding, method, World(rank, 4))
        for batch in batches(1, BEFORE):
            trained.step(batch)
        place = folder / f"{sharding} {method}"
        save_checkpoint(place, BEFORE, SETTINGS, trained.state_dict(), trained.sharded_state())
        found[sharding, method] = go_on(trained)
    return found


def loaded(folder: Path, sharding: str, method: str, world: World) -> Learner:
    fresh = learner(sharding, method, world)
    state = load_checkpoint(folder / f"{sharding} {method}", SETTINGS, fresh.sharded_state())
    fresh.load_state_dict(state)
    return fresh


def read(rank: int, folder: Path) -> dict:
    world = World(rank, dist.get_world_size())
    return {case: go_on(loaded(folder, *case, world)) for case in CASES}


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[Path, dict]:
    """Return the folder that four ranks wrote to, and the results of their further steps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, on_ranks(4, tmp_path_factory.mktemp("four"), partial(write, folder=folder))[0]


@pytest.fixture(scope="module", params=[1, 2, 8])
def others(request, four, tmp_path_factory) -> list[dict]:
    """Return the results of further steps on each of 1, 2 or 8 ranks."""
    return on_ranks(request.param, tmp_path_factory.mktemp("others"), partial(read, folder=four[0]))


def assert_as_four(found: dict, expected: dict) -> None:
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


def test_four_ranks_leave_one_complete_checkpoint(four):
    for sharding, method in CASES:
        assert [path.name for path in (four[0] / f"{sharding} {method}").iterdir()] == [f"step-{BEFORE}"]


@pytest.mark.parametrize("case", CASES)
def test_other_numbers_of_ranks_load_it_and_go_on_as_the_four_do(four, others, case):
    for found in others:
        assert_as_four(found[case], four[1][case])


@pytest.mark.parametrize("method", [method for sharding, method in CASES if sharding == "ddp"])
def test_a_process_without_a_group_loads_it(four, method):
    assert_as_four(go_on(loaded(four[0], "ddp", method, World())), four[1]["ddp", method])
