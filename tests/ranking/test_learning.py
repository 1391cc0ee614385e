"""The models learn a signal that was planted in ids and numbers."""

from __future__ import annotations

import pytest
import torch

from equipoise.forks.fork import Fork
from equipoise.ranking.losses import task_losses
from equipoise.ranking.metrics import TaskMetrics
from equipoise.ranking.models import build_model
from equipoise.ranking.models.nested_tasks import log_odds_of_product
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from tests.ranking.models.samples import every_model, needed

SCHEMA = Schema(
    [Categorical("user", 40), Categorical("item", 6)],
    [Numeric("price")],
    [Task("click"), Task("buy", after="click", over="all")],
)


def planted(rows: int) -> tuple[Batch, torch.Tensor]:
    """Two tasks that read other mixtures of the same three causes, and the true logits; a buy needs a click."""
    generator = torch.Generator().manual_seed(0)
    user, item = torch.randn(40, generator=generator), torch.randn(6, generator=generator)
    ids = torch.stack([torch.randint(0, n, (rows,), generator=generator) for n in (40, 6)], 1)
    price = torch.randn(rows, 1, generator=generator)
    causes = torch.cat((user[ids[:, :1]], item[ids[:, 1:]], price), 1)
    truth = causes @ torch.tensor([[1.5, 0.5], [1.0, -1.5], [0.5, 1.0]])
    labels = torch.bernoulli(truth.sigmoid(), generator=generator)
    labels[:, 1] *= labels[:, 0]
    truth[:, 1] = log_odds_of_product(truth.unbind(1))
    labels[::7, 1] = float("nan")
    return Batch(ids, price, labels, torch.ones(rows)), truth


@every_model
@pytest.mark.parametrize("forked", [False, True], ids=["plain", "forked"])
def test_a_planted_signal_is_learned_on_both_tasks(name: str, forked: bool) -> None:
    batch, truth = planted(12_000)
    held_out = slice(10_000, None)
    torch.manual_seed(0)
    model = build_model(
        name, SCHEMA, fork=(lambda: Fork(SCHEMA.task_names)) if forked else None, **needed(name, SCHEMA)
    )
    untrained, trained, best = (TaskMetrics(SCHEMA) for _ in range(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def evaluate(metrics: TaskMetrics) -> dict[str, dict[str, float]]:
        with torch.no_grad():
            logits = model(batch.categorical[held_out], batch.numeric[held_out])
        metrics.update(logits, batch.labels[held_out])
        return metrics.compute()

    before = evaluate(untrained)
    for _ in range(3):
        for start in range(0, 10_000, 250):
            rows = slice(start, start + 250)
            optimizer.zero_grad()
            logits = model(batch.categorical[rows], batch.numeric[rows])
            sum(task_losses(logits, batch.labels[rows], SCHEMA.tasks)).backward()
            optimizer.step()
    after = evaluate(trained)
    best.update(truth[held_out].unbind(1), batch.labels[held_out])
    for task, reachable in best.compute().items():
        assert before[task]["auc"] < 0.75 < after[task]["auc"]
        assert before[task]["ne"] > 0.97
        assert after[task]["ne"] < reachable["ne"] + 0.05
