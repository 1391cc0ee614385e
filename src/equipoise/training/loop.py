"""The training loop: batches in, one step of every model, metrics at a few points, one record out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.data.dataset import Dataset, Split
from equipoise.errors import SettingError
from equipoise.methods import Method
from equipoise.ranking.metrics import TaskMetrics
from equipoise.schema import Batch, Schema
from equipoise.training.faults.interruptions import StoppedError, Stopping
from equipoise.training.faults.non_finite import NonFinite, NonFiniteError, NonFiniteLosses
from equipoise.training.learner import Learner
from equipoise.training.progress import REMEDY, Progress, Saving, Window
from equipoise.training.ranks.parallel import Sharding
from equipoise.training.ranks.world import World, usable_device
from equipoise.training.reproducibility import why_irreproducible
from equipoise.training.run import CurvePoint, Run

__all__ = ["SEED_LIMIT", "Schedule", "count_steps", "train"]

SEED_LIMIT: Final = 2**43
"""Seeds of epochs are made of it, and must fit 64 bits."""

_EVALUATION_BATCH = 16_384
_LOOK_EVERY = 100  # steps at most between two looks at whether losses are finite, each of which waits for the device
_SUBSET_SEED = 0  # the same validation rows for every method and seed

Metrics = dict[str, dict[str, float]]
Schedule = Literal["linear", "constant"]


def train(
    dataset: Dataset,
    method: Method,
    /,
    *,
    model: str = "shared-bottom",
    model_options: Mapping[str, Any] | None = None,
    lr: float = 3e-3,
    schedule: Schedule = "linear",
    epochs: int = 1,
    batch_size: int = 2048,
    seed: int = 0,
    loss_scale: Mapping[str, float] | None = None,
    device: torch.device | str = "cpu",
    world: World | None = None,
    sharding: Sharding = "ddp",
    non_finite: NonFinite = "raise",
    evaluations: int = 8,
    evaluation_rows: int = 20_000,
    monitor_reads: int = 50,
    checkpoint: Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Run:
    """Train one method on one data set with Adam, and measure it.

    The seed decides the initial weights and the order of the batches, both the same for every method: a second run
    gives the same numbers, unless the record says why not (``Run.irreproducible``). Nothing is read from the device
    between two evaluation points.

    Args:
        model: a name that :func:`equipoise.ranking.models.build_model` knows, built with ``model_options``.
        lr: the learning rate at the start.
        schedule: "linear": the rate falls to 0 over the training; "constant": it stays.
        loss_scale: task -> factor on its loss, for experiments on robustness; reported losses are unscaled.
        device: where to train in a single process.
        world: the processes that train together, each with the whole data set; every one gets the same record.
        sharding: how the model is spread over them, see :func:`equipoise.training.parallelize`.
        non_finite: what a loss that is not finite leads to: "raise" ends the run at the next look, at most 100 steps
            later; "skip-task" and "skip-step" leave the task or the step out, and the record counts.
        evaluations: at how many evenly spaced points the validation metrics are taken.
        evaluation_rows: of the validation split, the same random ones every time; the last evaluation takes
            all.
        monitor_reads: about how often the fork or PUB is read.
        checkpoint: a folder to write to at every evaluation point: models, optimizers, forks, random state and
            the record so far. What ends the training otherwise, such as want of memory or Ctrl-C, leaves a checkpoint
            too in a single process, unless parameters were moving; a note on the exception says so.
            Those of an earlier training there are put aside, into a folder of the same name with ``.before``.
        checkpoint_every: write one after so many steps too.
        resume: go on from ``checkpoint``; the result is that of an uninterrupted run, to the bit.
        on_progress: called with (steps done, steps in all) after every step; what it raises ends the run.
        stop: asked after every step whether to end there, with a checkpoint; under several ranks all ask about once a
            second, and end together once one is told to.

    Raises:
        SettingError: a setting is not known or out of range, the training split is smaller than a batch, or there is no
            folder to resume from.
        CheckpointError: there is nothing to resume from, or it belongs to other settings.
        NonFiniteError: a loss was not finite under "raise", or a prediction in any case; the checkpoint is the last
            one from before.
        StoppedError: ``stop`` has said so.
    """
    world = world or World(device=usable_device(device))
    total = count_steps(dataset, epochs=epochs, batch_size=batch_size)
    counts = {"evaluations": evaluations, "evaluation_rows": evaluation_rows, "monitor_reads": monitor_reads}
    _expect_positive(counts if checkpoint_every is None else counts | {"checkpoint_every": checkpoint_every})
    _check(schedule, batch_size, world, seed)
    if resume and checkpoint is None:
        raise SettingError("To resume, say from which folder: expected checkpoint=..., found none.")
    schema = dataset.schema
    learner = Learner(
        schema, method, model=model, lr=lr, seed=seed, device=world.device,
        model_options=model_options, loss_scale=loss_scale, decay_steps=total if schedule == "linear" else None,
        world=world, sharding=sharding, non_finite=non_finite,
    )  # fmt: skip
    if learner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(learner.device)
    run = Run(method.name, seed, lr, irreproducible=why_irreproducible(learner.device))
    identity = {
        "dataset": dataset.name, "training_rows": str(len(dataset.train)),
        "data": dataset.fingerprint() if checkpoint else "",
        "method": method.settings(schema.task_names), "sharding": sharding,
        "model": model, "model_options": _sorted(model_options),
        "lr": str(lr), "schedule": schedule, "seed": str(seed), "loss_scale": _sorted(loss_scale),
        "epochs": str(epochs), "batch_size": str(batch_size),
        **{name: str(value) for name, value in counts.items()},
    }  # fmt: skip
    progress = Progress(run, NonFiniteLosses(world, schema.task_names), Window(world, len(schema.tasks)), non_finite)
    saving = Saving(checkpoint, identity, learner)
    progress = saving.begin(progress, resume=resume)

    points = {math.ceil(total * (i + 1) / evaluations) for i in range(evaluations)}
    read_every = max(1, total // monitor_reads)
    look_every = min(read_every, _LOOK_EVERY)
    stopping = Stopping(stop, world)
    subset = _random_rows(dataset.validation, evaluation_rows)
    try:
        if progress.steps in points and progress.window.steps:  # it ended before it had been evaluated there
            _evaluate(progress, learner, subset, batch_size)
        for step, batch in _stream(dataset.train, batch_size, seed, epochs, done=progress.steps):
            progress.add(step, learner.step(batch.to(learner.device)))
            if step % read_every == 0:
                progress.window.readings += [(step, reading) for reading in learner.read()]
            if step % look_every == 0:
                progress.refuse_non_finite()
            if on_progress is not None:
                on_progress(step, total)
            if step in points:
                _evaluate(progress, learner, subset, batch_size)
            if step in points or (checkpoint_every is not None and step % checkpoint_every == 0):
                saving.save(progress)
            if stopping.asked(step):
                raise StoppedError(step, saved=saving.save(progress))
        return _finish(progress.run, learner, dataset, batch_size)
    except (NonFiniteError, StoppedError):
        raise
    except BaseException as error:
        saving.rescue(progress, error)
        raise


def count_steps(dataset: Dataset, /, *, epochs: int, batch_size: int) -> int:
    """How many steps the training takes: the last, short batch of each epoch is left out.

    Raises:
        SettingError: a number is under 1, or the training split holds fewer rows than one batch.
    """
    _expect_positive({"epochs": epochs, "batch_size": batch_size})
    rows = len(dataset.train)
    if rows < batch_size:
        raise SettingError(
            f"A training split must hold at least one batch of {batch_size} rows, found {rows}: "
            "lower batch_size or load more rows."
        )
    return epochs * (rows // batch_size)


def _sorted(options: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(options or {}), sort_keys=True, default=str)


def _check(schedule: str, batch_size: int, world: World, seed: int) -> None:
    if not 0 <= seed <= SEED_LIMIT:
        raise SettingError(f"A seed must lie between 0 and {SEED_LIMIT}, found {seed}.")
    if batch_size % world.size:
        raise SettingError(
            f"batch_size must be a multiple of the {world.size} ranks that share it, found {batch_size}."
        )
    if schedule not in get_args(Schedule):
        raise SettingError(f"Expected a schedule out of {', '.join(get_args(Schedule))}; found {schedule!r}.")


def _expect_positive(numbers: Mapping[str, int]) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise SettingError(f"{name} must be at least 1, found {value}.")


def _stream(train: Split, batch_size: int, seed: int, epochs: int, *, done: int) -> Iterator[tuple[int, Batch]]:
    """The batches of all epochs, numbered from one, without the first ``done`` of them."""
    per_epoch = len(train) // batch_size
    for epoch in range(done // per_epoch, epochs):
        # a generator of its own for each epoch: a resumed run finds its order without replaying the past
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        batches = enumerate(train.batches(batch_size, generator=generator), start=epoch * per_epoch + 1)
        yield from islice(batches, max(0, done - epoch * per_epoch), None)


def _random_rows(split: Split, most: int) -> Split:
    if len(split) <= most:
        return split
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(_SUBSET_SEED))[:most]
    return Split(split.categorical[rows], split.numeric[rows], split.labels[rows], split.weight[rows])


def _diverged(run: Run) -> NonFiniteError:
    run.status = "diverged"
    return NonFiniteError(f"A prediction is not finite after step {run.steps}: {REMEDY}", run)


def _predict(learner: Learner, split: Split) -> list[Tensor] | None:
    """Every task's logits on a whole split, on the CPU; None where one of them is not finite."""
    parts = []
    for batch in split.batches(_EVALUATION_BATCH):
        rows = learner.world.share(len(batch.labels))
        own = Batch(batch.categorical[rows], batch.numeric[rows], batch.labels[rows], batch.weight[rows])
        found = learner.logits(own.to(learner.device))
        if learner.world.size > 1:
            everywhere = found.new_zeros(len(batch.labels), found.shape[1])
            everywhere[rows] = found
            dist.all_reduce(everywhere)
            found = everywhere
        parts.append(found.cpu())
    logits = torch.cat(parts)
    return list(logits.unbind(1)) if bool(logits.isfinite().all()) else None


def _evaluate(progress: Progress, learner: Learner, split: Split, batch_size: int) -> None:
    """One more point of the learning curve."""
    progress.refuse_non_finite()
    schema, step = learner.schema, progress.steps
    logits = _predict(learner, split)
    metrics = {} if logits is None else _measure(schema, split, logits)
    losses = progress.close(learner)
    progress.run.curve.append(_point(schema, step, batch_size, losses, metrics))
    if logits is None:
        raise _diverged(progress.run)


def _measure(schema: Schema, split: Split, logits: list[Tensor], weight: Tensor | None = None) -> Metrics:
    metrics = TaskMetrics(schema)
    metrics.update(logits, split.labels, weight)
    return {task: {name: float(value) for name, value in found.items()} for task, found in metrics.compute().items()}


def _finish(run: Run, learner: Learner, dataset: Dataset, batch_size: int) -> Run:
    """The last evaluation, on the whole validation and test splits."""
    run.examples_per_second = run.steps * batch_size / run.seconds if run.seconds else math.nan
    if learner.device.type == "cuda":
        run.peak_memory_bytes = torch.cuda.max_memory_allocated(learner.device)
    schema, test = dataset.schema, dataset.test
    validation_logits, test_logits = _predict(learner, dataset.validation), _predict(learner, test)
    if validation_logits is None or test_logits is None:
        raise _diverged(run)
    run.validation = _measure(schema, dataset.validation, validation_logits)
    run.test = _measure(schema, test, test_logits)
    if bool((test.weight != 1).any()):
        run.test_natural = _measure(schema, test, test_logits, test.weight)
    return run


def _point(schema: Schema, step: int, batch_size: int, losses: list[float], metrics: Metrics) -> CurvePoint:
    return {
        "step": step,
        "examples": step * batch_size,
        "train_loss": dict(zip(schema.task_names, losses, strict=True)),
        "validation": {task: {"auc": found["auc"], "ne": found["ne"]} for task, found in metrics.items()},
    }
