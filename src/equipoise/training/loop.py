"""The training loop: one step per batch, metrics at a few points, one record at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equipoise.data.dataset import Dataset, Split
from equipoise.errors import SettingError
from equipoise.methods import Method, parse_method
from equipoise.ranking.metrics import TaskMetrics
from equipoise.schema import Batch, Schema
from equipoise.settings import TrainingSettings
from equipoise.training.checkpoint.saving import Checkpoints
from equipoise.training.faults.interruptions import StoppedError, StopPoll
from equipoise.training.faults.non_finite import NonFiniteError, NonFiniteLosses
from equipoise.training.learner import Learner
from equipoise.training.ranks.world import World, usable_device
from equipoise.training.record import NON_FINITE_REMEDY, TrainingRecord, Window
from equipoise.training.reproducibility import why_irreproducible
from equipoise.training.run import CurvePoint, Run

__all__ = ["count_steps", "train"]

_EVALUATION_BATCH = 16_384
_LOOK_EVERY = 100  # steps at most between two checks for losses that are not finite, which wait for the device
_SUBSET_SEED = 0  # the same validation rows for every method and seed

Metrics = dict[str, dict[str, float]]


def train(
    dataset: Dataset,
    method: Method | str,
    /,
    *,
    world: World | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    on_trained: Callable[[nn.Module], None] | None = None,
    **settings: Any,
) -> Run:
    """Train one method on one data set with Adam, and measure it.

    The seed decides the initial weights and the order of the batches, which are the same for every method. A second run
    gives the same numbers, unless the record says why not (``Run.irreproducible``).

    On an accelerator the training split is copied to the device once, if it fits into half of the free memory. A step
    reads nothing from the device; losses are read at evaluation points, and checked at least every 100 steps.

    Args:
        dataset: the data set; it states the epochs and the batch size that suit it.
        method: the method, or its name with options behind a colon.
        world: the processes that train together, each with the whole data set; each returns the same record.
        checkpoint: the folder for checkpoints, written at every evaluation point: models, optimizers, forks, random
            state and the record so far. In a single process an error such as a lack of memory, or Ctrl-C, leaves a
            checkpoint too, unless parameters had begun to move; a note on the exception says so. Checkpoints of an
            earlier training are moved to a folder of the same name with ``.before``.
        resume: continue from ``checkpoint``; the result is that of an uninterrupted run, to the bit.
        on_step: called with (steps done, steps in all) after every step; an exception in it ends the run.
        stop: called after every step; True ends the run there, with a checkpoint. Several ranks call it about once a
            second and end together once it is True on one of them.
        on_trained: called at the end with the model that gives the outputs of all tasks, in evaluation mode.
        settings: any field of :class:`equipoise.settings.TrainingSettings`, such as ``lr``, ``epochs`` or ``model``.

    Raises:
        SettingError: a setting is not known or out of range, the training split is smaller than a batch, or there is no
            folder to resume from.
        FolderInUseError: another process writes to ``checkpoint``.
        CheckpointError: there is nothing to resume from, it belongs to other settings, or it cannot be loaded.
        NonFiniteError: a prediction was not finite, or under ``non_finite="raise"`` a loss; the last checkpoint is one
            from before.
        StoppedError: ``stop`` has returned True.

    Example:
        >>> from equipoise.data import load
        >>> run = train(load("funnel", rows=3000), "multibalance", lr=1e-2, epochs=1, batch_size=256)
        >>> sorted(run.test)
        ['click', 'conversion', 'like', 'long_view']
    """
    method = parse_method(method) if isinstance(method, str) else method
    chosen = TrainingSettings.of(**settings).suited_to(dataset)
    epochs, batch_size = chosen.steps_per
    world = world or World(device=usable_device(chosen.device))
    total = count_steps(dataset, epochs=epochs, batch_size=batch_size)
    _check(batch_size, world, resume=resume, checkpoint=checkpoint)
    schema = dataset.schema
    decay_steps = total if chosen.schedule == "linear" else None
    learner = Learner(schema, method, chosen, decay_steps=decay_steps, epoch_steps=total // epochs, world=world)
    if learner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(learner.device)
    run = Run(
        method.name, chosen.seed, chosen.lr, chosen.table_decay, irreproducible=why_irreproducible(learner.device)
    )
    identity = chosen.identity() | {
        "dataset": dataset.name, "tasks": ", ".join(schema.task_names), "training_rows": str(len(dataset.train)),
        "data": dataset.fingerprint() if checkpoint else "", "method": method.settings(schema.task_names),
    }  # fmt: skip
    record = TrainingRecord(
        run, NonFiniteLosses(world, schema.task_names), Window(world, len(schema.tasks)), chosen.non_finite
    )
    checkpoints = Checkpoints(checkpoint, identity, learner)
    with checkpoints.owned_folder():
        checkpoints.begin(record, resume=resume)

        points = {math.ceil(total * (i + 1) / chosen.evaluations) for i in range(chosen.evaluations)}
        read_every = max(1, total // chosen.monitor_reads)
        look_every = min(read_every, _LOOK_EVERY)
        poll = StopPoll(stop, world)
        subset = _random_rows(dataset.validation, chosen.evaluation_rows)
        try:
            if record.steps in points and record.window.steps:  # it ended before it had been evaluated there
                _evaluate(record, learner, subset, batch_size)
            rows = _on_device(dataset.train, learner.device, _free_bytes(learner.device))
            for step, batch in _stream(rows, batch_size, chosen.seed, epochs, done=record.steps):
                record.add(step, learner.step(_upload(batch, learner.device)))
                if step % read_every == 0:
                    record.window.readings += [(step, reading) for reading in learner.read()]
                if step % look_every == 0:
                    record.refuse_non_finite()
                if on_step is not None:
                    on_step(step, total)
                if step in points:
                    _evaluate(record, learner, subset, batch_size)
                if step in points or (chosen.checkpoint_every is not None and step % chosen.checkpoint_every == 0):
                    checkpoints.save(record)
                if poll.should_stop(step):
                    raise StoppedError(step, saved=checkpoints.save(record))
            _finish(record.run, learner, dataset, batch_size)
        except (NonFiniteError, StoppedError):
            raise
        except BaseException as error:
            checkpoints.rescue(record, error)
            raise
        if on_trained is not None:
            on_trained(learner.model().eval())
        return record.run


def count_steps(dataset: Dataset, /, *, epochs: int, batch_size: int) -> int:
    """Return the number of steps of a training; the last, short batch of each epoch is left out.

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


def _check(batch_size: int, world: World, *, resume: bool, checkpoint: Path | None) -> None:
    if batch_size % world.size:
        raise SettingError(
            f"batch_size must be a multiple of the {world.size} ranks that share it, found {batch_size}."
        )
    if resume and checkpoint is None:
        raise SettingError("To resume, say from which folder: expected checkpoint=..., found none.")


def _expect_positive(numbers: Mapping[str, int]) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise SettingError(f"{name} must be at least 1, found {value}.")


def _stream(train: Split, batch_size: int, seed: int, epochs: int, *, done: int) -> Iterator[tuple[int, Batch]]:
    """Yield the batches of all epochs, numbered from one, without the first ``done`` of them."""
    per_epoch = len(train) // batch_size
    for epoch in range(done // per_epoch, epochs):
        # a generator of its own for each epoch: a resumed run finds its order without replaying the past
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        skip = max(0, done - epoch * per_epoch)
        batches = train.batches(batch_size, generator=generator, skip=skip)
        yield from enumerate(batches, start=epoch * per_epoch + skip + 1)


def _free_bytes(device: torch.device) -> int:
    """Return the free memory of an accelerator; 0 where PyTorch does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _on_device(split: Split, device: torch.device, free_bytes: int) -> Split:
    """Copy a split to the device if it takes at most half of the free memory, so that batches are gathered there.

    The order of the batches comes from a generator on the CPU, so they are the same either way.
    """
    return split.to(device) if split.nbytes <= free_bytes / 2 else split


def _upload(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device, copied without waiting: from pinned memory, while earlier steps still run."""
    if device.type != "cuda" or batch.labels.is_cuda:
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)


def _random_rows(split: Split, most: int) -> Split:
    if len(split) <= most:
        return split
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(_SUBSET_SEED))[:most]
    return split.take(rows)


def _diverged(run: Run) -> NonFiniteError:
    run.status = "diverged"
    return NonFiniteError(f"A prediction is not finite after step {run.steps}: {NON_FINITE_REMEDY}", run)


def _predict(learner: Learner, split: Split) -> list[Tensor] | None:
    """Return the logits of each task on a whole split, on the CPU; None if one of them is not finite."""
    parts = []
    for batch in split.batches(_EVALUATION_BATCH):
        rows = learner.world.share(len(batch.labels))
        found = learner.logits(batch[rows].to(learner.device))
        if learner.world.size > 1:
            everywhere = found.new_zeros(len(batch.labels), found.shape[1])
            everywhere[rows] = found
            dist.all_reduce(everywhere)
            found = everywhere
        parts.append(found.cpu())
    logits = torch.cat(parts)
    return list(logits.unbind(1)) if bool(logits.isfinite().all()) else None


def _evaluate(record: TrainingRecord, learner: Learner, split: Split, batch_size: int) -> None:
    """Add a point to the learning curve."""
    record.refuse_non_finite()
    schema, step = learner.schema, record.steps
    logits = _predict(learner, split)
    metrics = {} if logits is None else _measure(schema, split, logits)
    losses = record.close_window(learner)
    record.run.curve.append(_point(schema, step, batch_size, losses, metrics))
    if logits is None:
        raise _diverged(record.run)


def _measure(schema: Schema, split: Split, logits: list[Tensor], weight: Tensor | None = None) -> Metrics:
    metrics = TaskMetrics(schema)
    metrics.update(logits, split.labels, weight)
    return {task: {name: float(value) for name, value in found.items()} for task, found in metrics.compute().items()}


def _finish(run: Run, learner: Learner, dataset: Dataset, batch_size: int) -> None:
    """Evaluate on the whole validation and test splits, and complete the run."""
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


def _point(schema: Schema, step: int, batch_size: int, losses: list[float], metrics: Metrics) -> CurvePoint:
    return {
        "step": step,
        "examples": step * batch_size,
        "train_loss": dict(zip(schema.task_names, losses, strict=True)),
        "validation": {task: {"auc": found["auc"], "ne": found["ne"]} for task, found in metrics.items()},
    }
