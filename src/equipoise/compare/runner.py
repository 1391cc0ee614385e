"""A comparison from plan to records: tune, train every method with every seed, measure speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from equipoise import data
from equipoise.compare.describe import check_folder, describe
from equipoise.compare.jobs import Job, Watch, cores, run_jobs
from equipoise.compare.plan import Plan
from equipoise.compare.records import append_run, read_runs, write_json
from equipoise.compare.throughput import peak_memory, throughput_ratio
from equipoise.data import Dataset
from equipoise.training import (
    METHODS,
    Learner,
    Method,
    NonFiniteError,
    Run,
    SettingError,
    World,
    count_steps,
    own_folder,
    parse_method,
    train,
)

__all__ = ["compare", "train_into"]

_TUNING_SEED = 1000  # the first seed of tuning, so that no seed both chooses a rate and reports a result
_THROUGHPUT_BATCHES = 20


def compare(plan: Plan, folder: Path, /, *, jobs: int | None = None, watch: Watch | None = None) -> None:
    """Train every method with every seed, and leave plan, runs and throughput as JSON in ``folder``.

    Runs that the folder already holds are kept; more methods or seeds can be added to it. Whatever ends this
    early leaves every finished run there.

    Args:
        jobs: how many worker processes train, as many as there are cores if None; the results do not depend
            on it.
        watch: is told how far it is.

    Raises:
        DataError: the data set is not known or cannot be had.
        SettingError: the plan names a method, model, task or option that does not exist.
        FolderError: the folder holds a comparison with other settings.
        FolderInUseError: another process writes to the folder.
    """
    watch = watch or Watch()
    methods = [parse_method(name) for name in plan.methods]
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise SettingError(f"Every method should be named once, found {', '.join(names)}.")
    dataset = _load(plan, watch)
    for method in methods:  # what is wrong with a model or method shows here, before anything is written
        _learner(plan, dataset, method)
    count_steps(dataset, epochs=plan.epochs, batch_size=plan.batch_size)
    description = describe(plan, dataset, methods)
    with own_folder(folder):
        check_folder(folder, description)
        _Comparison(plan, dataset, methods, folder, jobs or cores(), watch).run(description)


@dataclass(frozen=True)
class _Comparison:
    plan: Plan
    dataset: Dataset
    methods: Sequence[Method]
    folder: Path
    workers: int
    watch: Watch

    def run(self, description: dict[str, Any]) -> None:
        rates = {method.name: self.plan.rate(method.name) for method in self.methods}
        write_json(self.folder / "plan.json", description | {"rates": rates})
        if self.plan.tune:
            rates = self._tune()
            write_json(self.folder / "plan.json", description | {"rates": rates})
        todo = [Job("run", name, seed, lr) for seed in range(self.plan.seeds) for name, lr in rates.items()]
        self._done("Training", todo, self.folder / "runs.jsonl")
        self._measure_throughput()

    def _tune(self) -> dict[str, float]:
        """Each method's rate: that of the grid with the lowest mean validation NE over the tuning seeds."""
        seeds = range(_TUNING_SEED, _TUNING_SEED + self.plan.tune_seeds)
        names, grid = [method.name for method in self.methods], self.plan.grid
        todo = [Job("tune", name, seed, lr) for seed in seeds for name in names for lr in grid]
        runs = self._done("Tuning", todo, self.folder / "tuning.jsonl")

        def reached(name: str, lr: float) -> float:
            return sum(runs[Job("tune", name, seed, lr)].mean_validation_ne for seed in seeds)

        return {name: min(grid, key=partial(reached, name)) for name in names}

    def _done(self, title: str, todo: Sequence[Job], path: Path) -> dict[Job, Run]:
        """Every job's run, from the file where it holds it, else trained now and added to it."""
        known = {(run.method, run.seed, run.lr): run for run in read_runs(path)}
        done = {job: known[key] for job in todo if (key := (job.method, job.seed, job.lr)) in known}
        left = [job for job in todo if job not in done]
        self.watch.phase(title, len(todo), len(done))
        with closing(run_jobs(self.plan, self.dataset, left, self.workers, self.watch)) as results:
            for job, run in results:
                append_run(path, run, phase=job.phase)
                done[job] = run
                self.watch.finish(job, run)
        return done

    def _measure_throughput(self) -> None:
        """Throughput against equal weights and memory of the steps, of each method not measured before."""
        path = self.folder / "throughput.json"
        measured = _measured(path)
        left = [method for method in self.methods if method.name not in measured]
        self.watch.phase("Measuring throughput", len(self.methods), len(self.methods) - len(left))
        batches = list(islice(self.dataset.train.batches(self.plan.batch_size), _THROUGHPUT_BATCHES))
        reference = _learner(self.plan, self.dataset, METHODS["equal"])
        for method in left:
            build = partial(_learner, self.plan, self.dataset, method)
            ratio = throughput_ratio(build(), reference, batches)
            measured[method.name] = ratio | {"peak_memory": peak_memory(build, batches[0])}
            write_json(path, measured)
            self.watch.advance()


def _measured(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SettingError(f"Expected each method's speed as JSON in {path}, found something else: remove it.")
    return found


def _load(plan: Plan, watch: Watch) -> Dataset:
    watch.phase(f"Loading {plan.data}", 1)
    dataset = data.load(plan.data, **plan.data_options)
    watch.advance()
    return dataset


def _learner(plan: Plan, dataset: Dataset, method: Method) -> Learner:
    return Learner(
        dataset.schema, method,
        model=plan.model, model_options=plan.model_options, lr=plan.rate(method.name), seed=0,
        loss_scale=plan.loss_scale,
    )  # fmt: skip


def train_into(
    folder: Path,
    plan: Plan,
    /,
    *,
    seed: int = 0,
    world: World | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> Run:
    """Train the plan's one method once; ``checkpoint`` and ``run.json`` in ``folder`` hold what came of it, also if it
    diverged. What an earlier training has left there is kept as ``checkpoint.before`` and ``run.before.json``.

    Args:
        world: the processes that train together; the first of them writes.
        stop: see :func:`equipoise.training.train`.

    Raises:
        DataError, SettingError: the plan names what there is not, or cannot be resumed.
        FolderInUseError: another process writes to the folder.
        StoppedError: ``stop`` has said so.
        NonFiniteError: see :func:`equipoise.training.train`.
    """
    watch = watch or Watch()
    method = parse_method(plan.methods[0])
    with own_folder(folder, world):
        dataset = _load(plan, watch)
        job = Job("run", method.name, seed, plan.rate(method.name))
        writes = world is None or world.rank == 0

        def progress(done: int, total: int) -> None:
            if done == 1 and writes and (folder / "run.json").exists():  # of an earlier training, which this one is not
                (folder / "run.json").replace(folder / "run.before.json")
            watch.step(job, done, total)

        try:
            run = train(
                dataset, method,
                model=plan.model, model_options=plan.model_options, lr=job.lr, epochs=plan.epochs,
                batch_size=plan.batch_size, schedule=plan.schedule, seed=seed, loss_scale=plan.loss_scale,
                world=world, sharding=plan.sharding, non_finite=plan.non_finite,
                checkpoint=folder / "checkpoint", checkpoint_every=plan.checkpoint_every, resume=resume,
                on_progress=progress, stop=stop,
            )  # fmt: skip
        except NonFiniteError as error:
            if writes:
                write_json(folder / "run.json", json.loads(error.run.to_json()))
            raise
        if writes:
            write_json(folder / "run.json", json.loads(run.to_json()))
        return run
