"""Training on regressions, with positive weights and with the importance of rows."""

import pytest
import torch
from torch import Tensor

from equipoise.methods import METHODS
from equipoise.ranking.models import build_model
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import Learner

SCHEMA = Schema(
    [Categorical("video", 30)],
    [Numeric("age")],
    [
        Task("click", positive_weight=3.0),
        Task("seconds", kind="regression", mean=30.0, scale=12.0),
        Task("spend", kind="regression", loss="log", mean=1.0, scale=0.8),
    ],
)


def batches(count: int, *, rows: int = 48) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        ids, age = torch.randint(0, 30, (rows, 1), generator=generator), torch.randn(rows, 1, generator=generator)
        click = torch.bernoulli((4 * age[:, 0] + ids[:, 0] / 5 - 4).sigmoid(), generator=generator)
        seconds = 30 + 10 * age[:, 0] + ids[:, 0] / 3
        labels = torch.stack([click, seconds, seconds.abs() / 10], dim=1)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = torch.nan
        importance = torch.rand(rows, generator=generator) * 2
        found.append(Batch(ids, age, labels, torch.ones(rows), importance))
    return found


def plain_losses(outputs: tuple[Tensor, ...], batch: Batch) -> list[Tensor]:
    """Compute the losses again, by the rows that have a label."""
    found = []
    for output, column, task in zip(outputs, batch.labels.unbind(1), SCHEMA.tasks, strict=True):
        here = ~column.isnan()
        o, y, w = output[here], column[here], batch.importance[here]
        if task.binary:
            chance = o.sigmoid()
            terms = -(task.positive_weight * y * chance.log() + (1 - y) * (1 - chance).log())
        else:
            z = ((y + 1).log() if task.loss == "log" else y) - task.mean
            terms = (o - z / task.scale) ** 2
        found.append((w * terms).sum() / w.sum())
    return found


@pytest.mark.parametrize("name", ["equal", "single-task", "multibalance", "pub", "adatask"])
def test_every_kind_of_task_is_learned(name: str) -> None:
    learner = Learner(SCHEMA, METHODS[name], TrainingSettings.of(lr=0.02))
    seen = torch.stack([learner.step(batch) for batch in batches(80)])
    assert seen.isfinite().all()
    assert (seen[-20:].mean(0) < 0.8 * seen[:20].mean(0)).all()


def test_a_training_is_that_of_a_plain_loop_with_the_same_importance() -> None:
    learner = Learner(SCHEMA, METHODS["equal"], TrainingSettings.of(lr=0.02, seed=1))
    torch.manual_seed(1)
    model = build_model("shared-bottom", SCHEMA)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for batch in batches(25):
        losses = learner.step(batch)
        optimizer.zero_grad()
        expected = plain_losses(model(batch.categorical, batch.numeric), batch)
        sum(expected).backward()
        optimizer.step()
        torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-4, atol=1e-5)


def test_rows_without_importance_count_for_nothing() -> None:
    (batch,) = batches(1)
    kept = batch.importance > 1
    importance = kept.float()
    whole, part = (Learner(SCHEMA, METHODS["equal"], TrainingSettings.of(lr=0.02)) for _ in range(2))
    losses = whole.step(Batch(batch.categorical, batch.numeric, batch.labels, batch.weight, importance))
    fewer = batch[kept]
    expected = part.step(Batch(fewer.categorical, fewer.numeric, fewer.labels, fewer.weight))
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("policy", ["skip-task", "skip-step"])
@pytest.mark.parametrize("name", ["equal", "multibalance", "pub"])
def test_a_regression_whose_label_is_infinite_is_left_out_by_policy(name: str, policy: str) -> None:
    learner = Learner(SCHEMA, METHODS[name], TrainingSettings.of(lr=0.02, non_finite=policy))
    first, second = batches(2)
    labels = first.labels.clone()
    labels[5, 1] = torch.inf
    losses = learner.step(Batch(first.categorical, first.numeric, labels, first.weight, first.importance))
    assert losses.isfinite().tolist() == [True, False, True]
    assert learner.skipped_steps == (policy == "skip-step")
    assert learner.step(second).isfinite().all()
