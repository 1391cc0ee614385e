"""Measures the angle between Adam's update and the joint gradient over a training: PUB's statistical experiment.

    python benchmarks/questions/updates.py --out benchmarks/results/questions-updates.jsonl

Equal weights and PUB are trained on Complete Journey with the same seeds, rate and decay. In every fifth step the
gradient of each task's loss by the shared parameters is taken before the step, and compared with the joint gradient
(their sum) and with the update that the step then makes, decay of the tables taken out. Under equal weights momentum
and division by √v̂ are looked at one by one too. A line of the file holds one training, with statistics for each fifth
of it; trainings that the file holds are not made again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean

import torch
from records import Record, Records, Tables, arguments, markdown, mean_in_words, show
from torch import Tensor, nn

from equipoise import data
from equipoise.data import Dataset
from equipoise.methods import parse_method
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models.partition import partition_of
from equipoise.schema import Batch
from equipoise.settings import TrainingSettings
from equipoise.training import Learner, count_steps
from equipoise.training.optimizers import embedding_tables

METHODS = {"equal": "Adam on the sum of the losses", "pub-exact:update_every=1": "PUB (exact), α solved in every step"}
SETTINGS = {"lr": 0.03, "table_decay": 1.0, "epochs": 1}
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam's defaults
ANGLES = {
    "joint and update": "Adam's update",
    "joint and update, tables": "Adam's update, embedding tables alone",
    "joint and update, layers": "Adam's update, shared layers alone",
    "joint and momentum": "its momentum m̂ alone",
    "joint and joint/√v": "itself divided by √v̂",
}
SEEDS = 10
PARTS = 5
EVERY = 5


class SharedParameters:
    """The parameters that all tasks share, read as one vector."""

    def __init__(self, learner: Learner) -> None:
        self.model: nn.Module = learner.model().models[0]
        self.parameters = partition_of(self.model, learner.schema).shared_parameters(self.model)
        self.schema = learner.schema
        tables = {id(table) for table in embedding_tables(self.model)}
        self.in_tables = torch.cat([torch.full((p.numel(),), id(p) in tables) for p in self.parameters])

    def values(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters]).clone()

    def gradient(self) -> Tensor:
        """Return the gradient that the last step has left."""
        return torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None]).clone()

    def task_gradients(self, batch: Batch) -> Tensor:
        """Return the gradient of each task's loss, one row per task; no parameter and no ``grad`` changes."""
        losses = task_losses(self.model(batch.categorical, batch.numeric), batch.labels, self.schema.tasks)
        rows = [torch.autograd.grad(loss, self.parameters, retain_graph=True) for loss in losses]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


class AdamMoments:
    """Adam's moments of the joint gradient, followed beside the optimizer."""

    def __init__(self, size: int) -> None:
        self.first, self.second, self.steps = torch.zeros(size), torch.zeros(size), 0

    def advance(self, gradient: Tensor) -> None:
        self.steps += 1
        self.first.lerp_(gradient, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)

    def momentum(self) -> Tensor:
        return self.first / (1 - BETA1**self.steps)

    def scale(self) -> Tensor:
        """Return √v̂ + ε."""
        return (self.second / (1 - BETA2**self.steps)).sqrt() + EPS


def record(dataset: Dataset, method: str, seed: int) -> Record:
    settings = TrainingSettings.of(**SETTINGS, seed=seed).suited_to(dataset)
    epochs, batch_size = settings.steps_per
    total = count_steps(dataset, epochs=epochs, batch_size=batch_size)
    learner = Learner(dataset.schema, parse_method(method), settings, total_steps=total)
    shared = SharedParameters(learner)
    moments = AdamMoments(len(shared.in_tables))
    found: list[Record] = []
    for step, batch in enumerate(dataset.train.batches(batch_size, generator=torch.Generator().manual_seed(seed))):
        looked_at = step % EVERY == EVERY - 1
        rows, before = (
            (shared.task_gradients(batch), shared.values()) if looked_at else (torch.empty(0), torch.empty(0))
        )
        learner.step(batch)
        if method == "equal":
            moments.advance(shared.gradient())
        if looked_at:
            lr = settings.lr * (1 - step / total)  # the rate falls linearly
            decayed = torch.where(shared.in_tables, before * (1 - lr * settings.table_decay), before)
            found.append(
                statistics_of_step(
                    rows, decayed - shared.values(), moments, shared.in_tables, dataset.schema.task_names
                )
            )
    ends = [len(found) * part // PARTS for part in range(PARTS + 1)]
    return {"parts": [means_of(found[first:end]) for first, end in itertools.pairwise(ends) if end > first]}


def statistics_of_step(
    rows: Tensor, update: Tensor, moments: AdamMoments, in_tables: Tensor, tasks: Sequence[str]
) -> Record:
    """Return cosines, and whether a task that the joint gradient helps is hurt by the update.

    Args:
        rows: the tasks' gradients, shape [M, N].
        update: what was subtracted from the parameters, times any factor, shape [N].
        moments: those of the joint gradient, after the step; without steps they are left out.
        in_tables: which parameters are those of embedding tables, bool, shape [N].
    """
    joint = rows.sum(0)
    with_joint, with_update = cosines(rows, joint), cosines(rows, update)
    found: Record = {
        "joint and update": float(cosines(joint.unsqueeze(0), update)),
        "joint and update, tables": float(cosines(joint[in_tables].unsqueeze(0), update[in_tables])),
        "joint and update, layers": float(cosines(joint[~in_tables].unsqueeze(0), update[~in_tables])),
        "task and joint": dict(zip(tasks, with_joint.tolist(), strict=True)),
        "task and update": dict(zip(tasks, with_update.tolist(), strict=True)),
        "helped by joint": dict(zip(tasks, (with_joint > 0).double().tolist(), strict=True)),
        "helped by update": dict(zip(tasks, (with_update > 0).double().tolist(), strict=True)),
    }
    if moments.steps:
        momentum, scale = moments.momentum(), moments.scale()
        found |= {
            "joint and momentum": float(cosines(joint.unsqueeze(0), momentum)),
            "joint and joint/√v": float(cosines(joint.unsqueeze(0), joint / scale)),
            "update and Adam's formula": float(cosines(update.unsqueeze(0), momentum / scale)),
        }
    return found


def cosines(rows: Tensor, vector: Tensor) -> Tensor:
    """Return the cosine of each row with a vector, shape [M]."""
    return torch.nn.functional.cosine_similarity(rows.double(), vector.double().unsqueeze(0))


def means_of(steps: Sequence[Record]) -> Record:
    """Return the mean of each statistic over steps."""
    return {
        name: {task: round(fmean(step[name][task] for step in steps), 5) for task in first}
        if isinstance(first, dict)
        else round(fmean(step[name] for step in steps), 5)
        for name, first in steps[0].items()
    }


def tables(rows: Sequence[Record]) -> Tables:
    """Return the tables of the result."""
    of_method = {method: [row for row in rows if row["method"] == method] for method in METHODS}
    adam = of_method["equal"]
    parts = range(len(adam[0]["parts"]))
    tasks = list(adam[0]["parts"][0]["task and joint"])

    def by_task(kinds: Mapping[str, str], factor: int, digits: int) -> list[str]:
        return markdown(
            ["", *(f"`{task}`" for task in tasks)],
            [
                [
                    f"{label}: {kind}",
                    *(mean_in_words([factor * over_parts(row, name, task) for row in found], digits) for task in tasks),
                ]
                for method, label in METHODS.items()
                if (found := of_method[method])
                for name, kind in kinds.items()
            ],
        )

    return {
        "joint gradient and update": markdown(
            ["joint gradient and", *(f"fifth {part + 1}" for part in parts)],
            [
                [label, *(mean_in_words([row["parts"][part][name] for row in adam]) for part in parts)]
                for name, label in ANGLES.items()
            ],
        ),
        "tasks and update": by_task(
            {"task and joint": "with the joint gradient", "task and update": "with the update"}, 1, 3
        ),
        "steps that help": by_task({"helped by joint": "the joint gradient", "helped by update": "the update"}, 100, 1),
    }


def over_parts(row: Record, name: str, task: str) -> float:
    return fmean(part[name][task] for part in row["parts"])


def main() -> None:
    chosen = arguments(__doc__, rows=300_000, seeds=SEEDS)
    records = Records(chosen.out)
    dataset = data.load("complete-journey", rows=chosen.rows)
    for seed, method in itertools.product(range(chosen.seeds), METHODS):
        key = {"method": method, "seed": seed}
        records.get(key, partial(record, dataset, method, seed))
    show(tables(records.rows))


if __name__ == "__main__":
    main()
