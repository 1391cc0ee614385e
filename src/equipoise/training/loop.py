"""The training loop: one step per batch, metrics at a few points, one record at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise.data.dataset import AnySplit, Dataset
from equipoise.errors import SettingError
from equipoise.methods import Method, parse_method
from equipoise.schema import Batch
from equipoise.settings import TrainingSettings
from equipoise.training.checkpoint.saving import Checkpoints
from equipoise.training.early_stopping import EarlyStopping
from equipoise.training.evaluation import evaluate, finish, random_rows
from equipoise.training.faults.interruptions import StoppedError, StopPoll
from equipoise.training.faults.non_finite import NonFiniteError, NonFiniteLosses
from equipoise.training.learner import Learner
from equipoise.training.ranks.world import World, usable_device
from equipoise.training.record import TrainingRecord, Window
from equipoise.training.reproducibility import why_irreproducible
from equipoise.training.run import Run

__all__ = ["count_steps", "train"]

_LOOK_EVERY = 100  # steps at most between two checks for losses that are not finite, which wait for the device


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
    """Train one method on one data set, and measure it.

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
        on_trained: called at the end with the model that gives the outputs of all tasks, in evaluation mode: with
            ``stop_on`` that of the best evaluation, with ``ema`` that of the averaged weights.
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
    learner = Learner(schema, method, chosen, total_steps=total, epoch_steps=total // epochs, world=world)
    identity = chosen.identity() | {
        "dataset": dataset.name, "tasks": ", ".join(schema.task_names), "training_rows": str(len(dataset.train)),
        "data": dataset.fingerprint() if checkpoint else "", "method": method.settings(schema.task_names),
    }  # fmt: skip
    record = _new_record(chosen, method, dataset, learner)
    checkpoints = Checkpoints(checkpoint, identity, learner)
    with checkpoints.owned_folder():
        checkpoints.begin(record, resume=resume)

        points = {math.ceil(total * (i + 1) / chosen.evaluations) for i in range(chosen.evaluations)}
        read_every = max(1, total // chosen.monitor_reads)
        look_every = min(read_every, _LOOK_EVERY)
        poll = StopPoll(stop, world)
        subset = random_rows(dataset.validation, chosen.evaluation_rows)
        try:
            if record.steps in points and record.window.steps:  # it ended before it had been evaluated there
                evaluate(record, learner, subset, batch_size, group=dataset.group)
            rows = _on_device(dataset.train, learner.device, _free_bytes(learner.device))
            left = 0 if record.is_over else epochs  # a training that was resumed may have ended early
            for step, batch in _stream(rows, batch_size, chosen.seed, left, done=record.steps):
                record.add(step, learner.step(_upload(batch, learner.device)))
                if step % read_every == 0:
                    record.window.readings += [(step, reading) for reading in learner.read()]
                if step % look_every == 0:
                    record.refuse_non_finite()
                if on_step is not None:
                    on_step(step, total)
                if step in points:
                    evaluate(record, learner, subset, batch_size, group=dataset.group)
                if step in points or (chosen.checkpoint_every is not None and step % chosen.checkpoint_every == 0):
                    checkpoints.save(record)
                if poll.should_stop(step):
                    raise StoppedError(step, saved=checkpoints.save(record))
                if record.is_over:
                    break
            record.settle(learner)
            finish(record.run, learner, dataset, batch_size)
        except (NonFiniteError, StoppedError):
            raise
        except BaseException as error:
            checkpoints.rescue(record, error)
            raise
        if on_trained is not None:
            on_trained(learner.model().eval())
        return record.run


def _new_record(chosen: TrainingSettings, method: Method, dataset: Dataset, learner: Learner) -> TrainingRecord:
    """Return the record of a training that begins; the most memory that it takes is counted from here."""
    world, tasks = learner.world, dataset.schema.task_names
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    run = Run(
        method.name, chosen.seed, chosen.lr, chosen.table_decay, irreproducible=why_irreproducible(world.device),
        settings=chosen.deciding(),
    )  # fmt: skip
    stopping = EarlyStopping.of(chosen, dataset.schema, group=dataset.group)
    return TrainingRecord(run, NonFiniteLosses(world, tasks), Window(world, len(tasks)), chosen.non_finite, stopping)


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


def _stream(train: AnySplit, batch_size: int, seed: int, epochs: int, *, done: int) -> Iterator[tuple[int, Batch]]:
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


def _on_device(split: AnySplit, device: torch.device, free_bytes: int) -> AnySplit:
    """Copy a split to the device if it takes at most half of the free memory, so that batches are gathered there.

    The order of the batches comes from a generator on the CPU, so they are the same either way.
    """
    return split.to(device) if split.nbytes <= free_bytes / 2 else split


def _upload(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device, copied without waiting: from pinned memory, while earlier steps still run."""
    if device.type != "cuda" or batch.labels.is_cuda:
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)
