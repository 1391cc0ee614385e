"""The proof that a model's forks stand at the right places, for models of the package and of tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from equipoise.forks.fork import Fork
from equipoise.ranking.embedding import columns_of
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import ForkFactory, RankingModel
from equipoise.schema import PADDING, Batch, Categories, Schema, Task

PRIMES = (2.0, 3.0, 5.0, 7.0, 11.0, 13.0)


class FixedWeights(Fork):
    """A fork whose weights are the first primes, so that a gradient tells how often it has crossed one."""

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        return torch.tensor(PRIMES[: len(self.tasks)], dtype=gram.dtype)


def make_batch(schema: Schema, rows: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = [
        torch.randint(0, feature.cardinality, (rows, columns_of(feature)), generator=generator)
        for feature in schema.categorical
    ]
    for feature, values in zip(schema.categorical, ids, strict=True):
        if isinstance(feature, Categories):  # histories of every length
            lengths = torch.arange(rows).remainder(feature.length + 1).unsqueeze(1)
            values[torch.arange(feature.length) >= lengths] = PADDING
    labels = torch.randint(0, 2, (rows, len(schema.tasks)), generator=generator).float()
    for _ in schema.tasks:  # along chains of nested tasks
        for place, task in enumerate(schema.tasks):
            if task.over == "all" and task.after:
                labels[:, place] *= labels[:, schema.task_names.index(task.after)]
    return Batch(
        categorical=torch.cat(ids, 1) if ids else torch.empty(rows, 0, dtype=torch.int64),
        numeric=torch.randn(rows, len(schema.numeric_columns), generator=generator),
        labels=labels,
        weight=torch.ones(rows),
    )


def losses_of(model: nn.Module, batch: Batch, run: Callable[..., Sequence[Tensor]] | None = None) -> list[Tensor]:
    """The loss of each task with the model's auxiliary losses; ``run``: the model as it is called, if compiled."""
    outputs = (model if run is None else run)(batch.categorical, batch.numeric)
    if not isinstance(model, RankingModel):
        return task_losses(outputs, batch.labels, [Task(f"task {place}") for place in range(len(outputs))])
    tasks = [Task(name) for name in model.schema.task_names]
    return task_losses(outputs, batch.labels, tasks, auxiliary=model.auxiliary_losses(batch.labels))


def gradients_of_tasks(model: nn.Module, batch: Batch) -> list[list[Tensor | None]]:
    """Per task the gradient of its loss alone at every parameter, None where it does not reach."""
    return [
        list(torch.autograd.grad(losses_of(model, batch)[task], list(model.parameters()), allow_unused=True))
        for task in range(batch.labels.shape[1])  # a forward each: over one graph a fork wants all losses together
    ]


def assert_partition_is_true(model: RankingModel, batch: Batch) -> None:
    """Assert that shared parameters are reached by several tasks, own ones by one, and that no parameter is left."""
    names = model.schema.task_names
    reached = gradients_of_tasks(model, batch)
    shared = {id(parameter) for parameter in model.shared_parameters()}
    own = [{id(parameter) for parameter in model.task_parameters(task)} for task in names]
    for place, (name, parameter) in enumerate(model.named_parameters()):
        tasks = [task for task, gradients in zip(names, reached, strict=True) if gradients[place] is not None]
        claimed = [task for task, part in zip(names, own, strict=True) if id(parameter) in part]
        if len(names) > 1:
            assert (id(parameter) in shared) == (len(tasks) > 1), f"{name} is reached by {tasks}"
        assert claimed == ([] if id(parameter) in shared else tasks), f"{name} is reached by {tasks}"


def assert_cut_is_right(build: Callable[[ForkFactory | None], nn.Module], batch: Batch) -> None:
    """Assert that every path from a task's loss to a shared parameter crosses one fork, in a branch of that task.

    With weights w_m at every fork, the gradient at a shared parameter is then Σ_m w_m g_m, where g_m is that of the
    loss of task m in the model without forks, and the gradient at a task's own parameter is what it was. Primes tell
    a path around the forks (1), one that crosses two (a product), and one in another task's branch.
    """
    plain, forked = build(None), build(lambda: FixedWeights(batch.labels.shape[1]))
    apart = gradients_of_tasks(plain, batch)
    sum(losses_of(forked, batch)).backward()
    for place, (name, parameter) in enumerate(forked.named_parameters()):
        of_tasks = {task: gradients[place] for task, gradients in enumerate(apart) if gradients[place] is not None}
        if not of_tasks:
            continue
        weights = PRIMES if len(of_tasks) > 1 else [1.0] * len(apart)
        expected = sum(weights[task] * gradient for task, gradient in of_tasks.items())
        torch.testing.assert_close(
            parameter.grad, expected, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
