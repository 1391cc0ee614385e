"""The training loop: batches in, one step of every model, metrics at a few points, one record out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.data.dataset import Dataset, Split
from equipoise.monitor import Reading
from equipoise.ranking.metrics import TaskMetrics
from equipoise.ranking.schema import Batch, Schema
from equipoise.training.checkpoint import load_checkpoint, save_checkpoint
from equipoise.training.errors import SettingError
from equipoise.training.interruptions import StoppedError
from equipoise.training.learner import Learner
from equipoise.training.methods import Method
from equipoise.training.non_finite import NonFinite, NonFiniteError, NonFiniteLosses
from equipoise.training.parallel import Sharding
from equipoise.training.reproducibility import why_irreproducible
from equipoise.training.run import Run
from equipoise.training.world import World, usable_device

__all__ = ["Schedule", "count_steps", "train"]

_REMEDY = "lower the learning rate, look at the data of that step, or let non_finite skip the task or the step."
_EVALUATION_BATCH = 16_384
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
        non_finite: what a loss that is not finite leads to: "raise" ends the run at the next look, which is at every
            reading of the monitor; "skip-task" and "skip-step" leave the task or the step out, and the record counts.
        evaluations: at how many evenly spaced points the validation metrics are taken.
        evaluation_rows: of the validation split, the same random ones every time; the last evaluation takes
            all.
        monitor_reads: about how often the fork or PUB is read.
        checkpoint: a folder to write to at every evaluation point: models, optimizers, forks, random state and
            the record so far.
        checkpoint_every: write one after so many steps too. What ends a step half made, as want of memory does,
            goes back to the last one.
        resume: go on from ``checkpoint``; the result is that of an uninterrupted run, to the bit.
        on_progress: called with (steps done, steps in all) after every step; what it raises ends the run.
        stop: asked after every step whether to end there, with a checkpoint; under several ranks all ask at the
            readings of the monitor, and end together once one is told to.

    Raises:
        SettingError: a setting is not known or out of range, or the training split is smaller than a batch.
        CheckpointError: there is nothing to resume from, or it belongs to other settings.
        NonFiniteError: a loss was not finite under "raise", or a prediction in any case; the checkpoint is the last
            one from before.
        StoppedError: ``stop`` has said so.
    """
    world = world or World(device=usable_device(device))
    total = count_steps(dataset, epochs=epochs, batch_size=batch_size)
    if batch_size % world.size:
        raise SettingError(
            f"batch_size must be a multiple of the {world.size} ranks that share it, found {batch_size}."
        )
    counts = {"evaluations": evaluations, "evaluation_rows": evaluation_rows, "monitor_reads": monitor_reads}
    _expect_positive(counts if checkpoint_every is None else counts | {"checkpoint_every": checkpoint_every})
    if schedule not in get_args(Schedule):
        raise SettingError(f"Expected a schedule out of {', '.join(get_args(Schedule))}; found {schedule!r}.")
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
        "dataset": f"{dataset.name} ({len(dataset.train)} training rows)",
        "method": method.settings(schema.task_names),
        "model": model, "model_options": str(dict(model_options or {})),
        "lr": str(lr), "schedule": schedule, "seed": str(seed), "loss_scale": str(dict(loss_scale or {})),
        "non_finite": non_finite,
        "epochs": str(epochs), "batch_size": str(batch_size),
        **{name: str(value) for name, value in counts.items()},
    }  # fmt: skip
    progress = _Progress(run, NonFiniteLosses(world, schema.task_names), _Window(world, len(schema.tasks)))
    saving = _Saving(checkpoint, identity, learner)
    if resume:
        progress = saving.load(progress)

    points = {math.ceil(total * (i + 1) / evaluations) for i in range(evaluations)}
    read_every = max(1, total // monitor_reads)
    subset = _random_rows(dataset.validation, evaluation_rows)
    for step, batch in _stream(dataset.train, batch_size, seed, epochs, done=progress.steps):
        progress.add(step, learner.step(batch.to(learner.device)))
        if step % read_every == 0:
            progress.window.readings += [(step, reading) for reading in learner.read()]
            progress.refuse_non_finite(non_finite)
        if on_progress is not None:
            on_progress(step, total)
        if step in points:
            progress.refuse_non_finite(non_finite)
            logits = _predict(learner, subset)
            losses = progress.close(learner)
            progress.run.curve.append(_point(schema, step, batch_size, losses, _measure(schema, subset, logits)))
            if logits is None:
                raise _diverged(progress.run)
            saving.save(step, progress)
        elif checkpoint_every is not None and step % checkpoint_every == 0:
            progress.refuse_non_finite(non_finite)  # what is saved can be gone on from
            saving.save(step, progress)
        if stop is not None and (world.size == 1 or step % read_every == 0) and _any_rank(stop(), world):
            raise StoppedError(step, saved=saving.save(step, progress))
    return _finish(progress.run, learner, dataset, batch_size)


@dataclass
class _Progress:
    """The record up to the last evaluation point, and what has happened since."""

    run: Run
    watch: NonFiniteLosses
    window: _Window

    @property
    def steps(self) -> int:
        """Steps made."""
        return self.run.steps + self.window.steps

    def add(self, step: int, losses: Tensor) -> None:
        self.watch.see(losses, step)
        self.window.add(losses)

    def close(self, learner: Learner) -> list[float]:
        """Bring what has happened into the record and begin anew; the mean losses."""
        losses = self.window.close(self.run)
        for task, (steps, _) in self.watch.read().items():
            self.run.non_finite[task] = self.run.non_finite.get(task, 0) + steps
        self.run.skipped_steps += learner.skipped_steps
        learner.skipped_steps = 0
        self.watch = NonFiniteLosses(self.watch.world, self.watch.tasks)
        self.window = _Window(self.window.world, len(losses))
        return losses

    def refuse_non_finite(self, policy: NonFinite) -> None:
        if policy != "raise" or not (found := self.watch.read()):
            return
        self.window.close(self.run)
        self.run.non_finite = {task: steps for task, (steps, _) in found.items()}
        self.run.status = "diverged"
        first = ", ".join(f"{task} in step {step}" for task, (_, step) in found.items())
        raise NonFiniteError(f"The loss or its gradient is not finite, first of {first}: {_REMEDY}", self.run)


@dataclass(frozen=True)
class _Saving:
    """Where checkpoints go, and whose they are."""

    folder: Path | None
    identity: Mapping[str, str]
    learner: Learner

    def save(self, step: int, progress: _Progress) -> bool:
        """Whether there is a folder to save to."""
        if self.folder is None:
            return False
        content = {
            "learner": self.learner.state_dict(), "run": asdict(progress.run),
            "watch": progress.watch.state_dict(), "window": progress.window.state_dict(),
            "rng": _random_states(self.learner.world), "skipped_steps": self.learner.skipped_steps,
        }  # fmt: skip
        save_checkpoint(self.folder, step, self.identity, content, self.learner.sharded_state())
        return True

    def load(self, progress: _Progress) -> _Progress:
        """The learner's state is restored, and the progress with it."""
        if self.folder is None:
            return progress
        state = load_checkpoint(self.folder, self.identity, self.learner.sharded_state())
        self.learner.load_state_dict(state["learner"])
        self.learner.skipped_steps = state["skipped_steps"]
        progress.watch.load_state_dict(state["watch"])
        progress.window.load_state_dict(state["window"])
        rank = self.learner.world.rank
        if rank < len(state["rng"]):  # a rank that there was not goes on with the random state that it has
            torch.set_rng_state(state["rng"][rank])
        return _Progress(Run(**state["run"]), progress.watch, progress.window)


def _diverged(run: Run) -> NonFiniteError:
    run.status = "diverged"
    return NonFiniteError(f"A prediction is not finite after step {run.steps}: {_REMEDY}", run)


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


def _expect_positive(numbers: Mapping[str, int]) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise SettingError(f"{name} must be at least 1, found {value}.")


def _any_rank(told: bool, world: World) -> bool:
    if world.size == 1:
        return told
    found = torch.tensor(int(told), device=world.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


class _Window:
    """What happened since the last evaluation point, still on the device."""

    def __init__(self, world: World, tasks: int) -> None:
        self.world = world
        self.loss_sum = torch.zeros(tasks, device=world.device)
        self.counted = torch.zeros_like(self.loss_sum)
        self.steps = 0
        self.readings: list[tuple[int, Reading]] = []
        self.monitor: list[dict[str, float]] = []
        self.started = time.perf_counter()

    def add(self, losses: Tensor) -> None:
        finite = losses.isfinite()
        self.loss_sum += torch.where(finite, losses, 0.0)
        self.counted += finite
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from; of several ranks the sums of all."""
        self._read()
        sums = torch.stack([self.loss_sum, self.counted])
        if self.world.size > 1:
            dist.all_reduce(sums)
        seconds = time.perf_counter() - self.started
        return {"sums": sums.cpu(), "steps": self.steps, "seconds": seconds, "monitor": list(self.monitor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The first rank goes on with the sums of all."""
        if self.world.rank == 0:
            self.loss_sum, self.counted = state["sums"].to(self.world.device).unbind()
        self.steps = state["steps"]
        self.monitor = list(state["monitor"])
        self.started -= state["seconds"]

    def _read(self) -> None:
        self.monitor += [{"step": step, **reading.scalars()} for step, reading in self.readings]
        self.readings = []

    def close(self, run: Run) -> list[float]:
        """Bring time, steps and readings into the run; the means of the finite losses."""
        if self.world.size > 1:
            dist.all_reduce(self.loss_sum)
            dist.all_reduce(self.counted)
        losses: list[float] = (self.loss_sum / self.counted).tolist()  # waits for the device
        run.seconds += time.perf_counter() - self.started
        run.steps += self.steps
        self._read()
        run.monitor += self.monitor
        return losses


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


def _random_states(world: World) -> list[Tensor]:
    """Every rank's state of the global generator, which dropout draws from."""
    own = torch.get_rng_state()
    if world.size == 1:
        return [own]
    states = [torch.empty_like(own, device=world.device) for _ in range(world.size)]
    dist.all_gather(states, own.to(world.device))
    return [state.cpu() for state in states]


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


def _measure(schema: Schema, split: Split, logits: list[Tensor] | None, weight: Tensor | None = None) -> Metrics:
    if logits is None:
        return {}
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


def _point(schema: Schema, step: int, batch_size: int, losses: list[float], metrics: Metrics) -> dict[str, Any]:
    return {
        "step": step,
        "examples": step * batch_size,
        "train_loss": dict(zip(schema.task_names, losses, strict=True)),
        "validation": {task: {"auc": found["auc"], "ne": found["ne"]} for task, found in metrics.items()},
    }
