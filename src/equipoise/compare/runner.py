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
from equipoise.compare.describe import check_same_comparison, check_tunable, describe
from equipoise.compare.jobs import Job, Watch, cores, run_jobs
from equipoise.compare.result_folder import ResultFolder, write_json
from equipoise.compare.results import EQUAL_WEIGHTS
from equipoise.compare.throughput import peak_memory, throughput_ratio
from equipoise.compare.tuned_rates import rate
from equipoise.compare.tuning import choose_rates
from equipoise.data import Dataset
from equipoise.settings import Settings
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


def compare(settings: Settings, folder: Path, /, *, jobs: int | None = None, watch: Watch | None = None) -> None:
    """Train every method with every seed, and leave plan, runs and throughput as JSON in ``folder``.

    Runs that the folder already holds are kept; more methods or seeds can be added to it. Whatever ends this
    early leaves every finished run there.

    Args:
        jobs: how many worker processes train, as many as there are cores if None; the results do not depend
            on it.
        watch: is told how far it is.

    Raises:
        DataError: the data set is not known or cannot be had.
        SettingError: the settings name a method, model, task or option that does not exist.
        FolderError: the folder holds a comparison with other settings.
        FolderInUseError: another process writes to the folder.
    """
    watch = watch or Watch()
    methods = [parse_method(name) for name in (METHODS.usable() if settings.methods == ["all"] else settings.methods)]
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise SettingError(f"Every method should be named once, found {', '.join(names)}.")
    dataset = _load(settings, watch)
    settings = settings.suited_to(dataset)
    for method in methods:  # what is wrong with a model or method shows here, before anything is written
        _learner(settings, dataset, method)
    epochs, batch_size = settings.steps_per
    count_steps(dataset, epochs=epochs, batch_size=batch_size)
    if settings.tune:
        check_tunable(dataset)
    description = describe(settings, dataset, methods)
    with own_folder(folder):
        results = ResultFolder(folder)
        check_same_comparison(results, description)
        _Comparison(settings, dataset, methods, results, jobs or cores(), watch).run(description)


@dataclass(frozen=True)
class _Comparison:
    settings: Settings
    dataset: Dataset
    methods: Sequence[Method]
    folder: ResultFolder
    workers: int
    watch: Watch

    def run(self, description: dict[str, Any]) -> None:
        rates = {method.name: rate_of(self.settings, method.name) for method in self.methods}
        self.folder.write_plan(description | {"rates": rates})
        if self.settings.tune:
            rates = choose_rates(self._tuning_runs())
            self.folder.write_plan(description | {"rates": rates})
        todo = [Job(name, seed, lr) for seed in range(self.settings.seeds) for name, lr in rates.items()]
        self._do("Training", todo, self.folder.runs(), self.folder.add_run)
        self._measure_throughput()

    def _tuning_runs(self) -> list[Run]:
        """Train every method at every rate of the grid with the tuning seeds."""
        seeds = range(_TUNING_SEED, _TUNING_SEED + self.settings.tune_seeds)
        todo = [Job(method.name, seed, lr) for seed in seeds for method in self.methods for lr in self.settings.grid]
        return self._do("Tuning", todo, self.folder.tuning_runs(), self.folder.add_tuning_run)

    def _do(self, title: str, todo: Sequence[Job], finished: Sequence[Run], add: Callable[[Run], None]) -> list[Run]:
        """Return the run of each job: out of ``finished`` where it is there, else trained now and added."""
        known = {Job.of(run): run for run in finished}
        done = {job: known[job] for job in todo if job in known}
        left = [job for job in todo if job not in done]
        self.watch.phase(title, len(todo), len(done))
        with closing(run_jobs(self.settings, self.dataset, left, self.workers, self.watch)) as results:
            for job, run in results:
                add(run)
                done[job] = run
                self.watch.finish(job, run)
        return [done[job] for job in todo]

    def _measure_throughput(self) -> None:
        """Measure the throughput against equal weights and the memory of each method not measured before."""
        measured = self.folder.throughput()
        left = [method for method in self.methods if method.name not in measured]
        self.watch.phase("Measuring throughput", len(self.methods), len(self.methods) - len(left))
        batches = list(islice(self.dataset.train.batches(self.settings.steps_per[1]), _THROUGHPUT_BATCHES))
        reference = _learner(self.settings, self.dataset, METHODS[EQUAL_WEIGHTS])
        for method in left:
            build = partial(_learner, self.settings, self.dataset, method)
            speed = throughput_ratio(build(), reference, batches)
            measured[method.name] = speed.model_copy(update={"peak_memory": peak_memory(build, batches[0])})
            self.folder.write_throughput(measured)
            self.watch.advance()


def _load(settings: Settings, watch: Watch) -> Dataset:
    watch.phase(f"Loading {settings.data}", 1)
    dataset = data.load(settings.data, **settings.data_options)
    watch.advance()
    return dataset


def _learner(settings: Settings, dataset: Dataset, method: Method) -> Learner:
    return Learner(dataset.schema, method, settings.training(lr=rate_of(settings, method.name), seed=0))


def rate_of(settings: Settings, method: str) -> float:
    """The learning rate of a method where it is not tuned now."""
    return settings.rates.get(method, rate(settings.data, settings.model, method))


def train_into(
    folder: Path,
    settings: Settings,
    /,
    *,
    world: World | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> Run:
    """Train the settings' method once; leave ``checkpoint`` and ``run.json`` in ``folder``, also if it diverged.

    What an earlier training has left there is kept as ``checkpoint.before`` and ``run.before.json``.

    Args:
        world: the processes that train together; the first of them writes.
        stop: see :func:`equipoise.training.train`.

    Raises:
        DataError, SettingError: the settings name what there is not, or cannot be resumed.
        FolderInUseError: another process writes to the folder.
        StoppedError: ``stop`` has said so.
        NonFiniteError: see :func:`equipoise.training.train`.
    """
    watch = watch or Watch()
    method = parse_method(settings.method)
    with own_folder(folder, world):
        dataset = _load(settings, watch)
        lr = settings.lr if "lr" in settings.model_fields_set else rate_of(settings, method.name)
        settings = settings.suited_to(dataset).model_copy(update={"lr": lr})
        job = Job(method.name, settings.seed, lr, settings.table_decay)
        writes = world is None or world.rank == 0

        def progress(done: int, total: int) -> None:
            if done == 1 and writes and (folder / "run.json").exists():  # of an earlier training, which this one is not
                (folder / "run.json").replace(folder / "run.before.json")
            watch.step(job, done, total)

        try:
            run = train(
                dataset, method,
                world=world, checkpoint=folder / "checkpoint", resume=resume, on_step=progress, stop=stop,
                **settings.training().model_dump(),
            )  # fmt: skip
        except NonFiniteError as error:
            if writes:
                write_json(folder / "run.json", json.loads(error.run.to_json()))
            raise
        if writes:
            write_json(folder / "run.json", json.loads(run.to_json()))
        return run
