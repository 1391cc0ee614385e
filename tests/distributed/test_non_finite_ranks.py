"""A loss that is not finite on one rank alone: all ranks skip the same, as one process does."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, Learner, SettingError, World
from equipoise.training import learner as learner_module
from equipoise.training.faults.non_finite import NonFiniteLosses
from tests.distributed.gloo import on_ranks

SCHEMA = Schema([], [Numeric("age")], [Task("click"), Task("buy")])
NAMES = ("single-task", "equal", "multibalance", "pub", "adatask")
POLICIES = ("skip-task", "skip-step")
STEPS, ROWS, BAD = 6, 32, 3


def train(name: str, policy: str, world: World, sharding: str = "ddp") -> dict:
    losses, calls = learner_module.task_losses, [0]

    def spoilt(*given: object, **options: object) -> list[Tensor]:
        """Make the loss of `buy` NaN in one step, for the rows of rank 0, or for all rows in a single process."""
        found = losses(*given, **options)
        calls[0] += 1
        tasks = range(len(found)) if len(found) > 1 else [(calls[0] - 1) % 2]
        steps = calls[0] if len(found) > 1 else (calls[0] + 1) // 2
        return [
            loss * torch.nan if steps == BAD and task == 1 and world.rank == 0 else loss
            for task, loss in zip(tasks, found, strict=True)
        ]

    generator = torch.Generator().manual_seed(1)
    learner = Learner(
        SCHEMA, METHODS[name], TrainingSettings.of(lr=0.01, seed=3, non_finite=policy, sharding=sharding), world=world
    )
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner_module, "task_losses", spoilt)
        for _ in range(STEPS):
            age = torch.randn(ROWS, 1, generator=generator)
            labels = torch.cat([age > 0, age < 0.3], dim=1).float()
            seen.append(learner.step(Batch(torch.zeros(ROWS, 0, dtype=torch.int64), age, labels, torch.ones(ROWS))))
    together = torch.stack(seen)
    if world.size > 1:
        dist.all_reduce(together)
    probe = Batch(
        torch.zeros(9, 0, dtype=torch.int64), torch.linspace(-2, 2, 9)[:, None], torch.ones(9, 2), torch.ones(9)
    )
    return {
        "losses": together / world.size, "logits": learner.logits(probe), "skipped": torch.tensor(learner.skipped_steps)
    }  # fmt: skip


def work(rank: int) -> dict:
    found = {(name, policy): train(name, policy, World(rank, 2)) for name in NAMES for policy in POLICIES}
    return found | {("multibalance", policy, "fsdp"): train("multibalance", policy, World(rank, 2), "fsdp")
                    for policy in POLICIES}  # fmt: skip


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), work)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", [(name,) for name in NAMES] + [("multibalance", "fsdp")], ids="-".join)
def test_what_one_rank_skips_all_skip_as_one_process_does(ranks, name, policy):
    method, *sharding = name
    one, other = (found[method, policy, *sharding] for found in ranks)
    assert torch.equal(one["logits"], other["logits"])
    alone = train(method, policy, World())
    assert alone["losses"].isnan().nonzero().tolist() == [[BAD - 1, 1]]
    for key, expected in alone.items():
        torch.testing.assert_close(one[key], expected, rtol=1e-5, atol=1e-5, equal_nan=True)


RANKS_BAD = {0: (3, 250), 1: (2, 250, 251)}  # rank -> steps in which its loss of `buy` is bad


def count(rank: int) -> dict:
    """Return the counts of NonFiniteLosses after 260 steps, more than it stores one by one."""
    watch = NonFiniteLosses(World(rank, 2), ["click", "buy"])
    for step in range(1, 261):
        watch.add(torch.tensor([1.0, torch.nan if step in RANKS_BAD[rank] else 1.0]), step)
    return {"found": watch.read()}


def test_a_step_that_is_bad_on_any_rank_counts_once_and_the_first_is_the_first_of_all(tmp_path):
    for found in on_ranks(2, tmp_path, count):
        assert found["found"] == {"buy": (4, 2)}


def uneven(rank: int) -> dict:
    """A batch of 15 rows, which two ranks cannot share equally."""
    schema = Schema([Categorical("user", 50)], [Numeric("age")], [Task("click")])
    batch = Batch(torch.zeros(15, 1, dtype=torch.int64), torch.zeros(15, 1), torch.ones(15, 1), torch.ones(15))
    said = {}
    for sharding in ("row-wise", "ddp"):
        learner = Learner(
            schema, METHODS["equal"], TrainingSettings.of(lr=0.01, seed=3, sharding=sharding), world=World(rank, 2)
        )
        try:
            said[sharding] = learner.step(batch).item()
        except SettingError as error:
            said[sharding] = str(error)
    return said


def test_shares_that_row_wise_tables_cannot_exchange_are_named(tmp_path):
    for found in on_ranks(2, tmp_path, uneven):
        assert "expected a multiple of the 2 ranks, found 15 rows" in found["row-wise"]
        assert found["ddp"] > 0
