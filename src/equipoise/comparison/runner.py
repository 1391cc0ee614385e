"""A comparison from settings to records: tune, train every method with every seed, measure speed."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from equipoise import data
from equipoise.comparison.describe import check_same_comparison, check_tunable, describe
from equipoise.comparison.jobs import Job, RunListener, method_at, run_jobs, workers_on
from equipoise.comparison.result_folder import ResultFolder, without_details, write_json
from equipoise.comparison.results import EQUAL_WEIGHTS, STATIC_WEIGHTS
from equipoise.comparison.throughput import peak_memory, throughput_ratio
from equipoise.comparison.time_left import TimeLeft
from equipoise.comparison.tuned_rates import Choice, ChosenRate, Rate, chosen_rate, rates_in
from equipoise.comparison.tuning import best_rates, choose_rates, scores_of
from equipoise.data import Dataset
from equipoise.errors import MisplacedForkWarning
from equipoise.serving import Ranker
from equipoise.serving.folder import set_ranker_aside
from equipoise.settings import Settings, command_line
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
from equipoise.training.checkpoint import last_checkpoint, set_aside_folder
from equipoise.training.optimizers import note_on_large_tables

if TYPE_CHECKING:
    from equipoise.comparison.rate_search import RateSearch

__all__ = ["load_data", "run_comparison", "train_into"]

_TUNING_SEED = 1000  # the first seed of tuning, so that no seed both chooses a rate and reports a result
_FINALIST_SEEDS = 2  # beyond those of the other trials
_THROUGHPUT_BATCHES = 20
_NO_GUARD = (
    "A worker process has come to the call that starts worker processes: put the call under "
    '`if __name__ == "__main__":` in your script, or use jobs=1.'
)


def run_comparison(
    settings: Settings,
    folder: Path,
    /,
    *,
    dataset: Dataset | None = None,
    from_python: Sequence[str] = (),
    jobs: int | None = None,
    listener: RunListener | None = None,
    speed: bool = True,
    details: bool = True,
) -> None:
    """Train every method with every seed, and leave plan, runs and throughput as JSON in ``folder``.

    Runs that the folder already holds are kept; more methods or seeds can be added to it. If this ends
    early, all finished runs stay there.

    Args:
        dataset: taken in place of the one that the settings name.
        from_python: names of settings whose values a caller gave as Python objects, for the report.
        jobs: how many worker processes train; if None as many as there are cores, and one on an accelerator. The
            results do not depend on it.
        listener: is told the progress.
        speed: measure the throughput and memory of each method.
        details: keep learning curves, slices, calibration curves and the monitor's readings of each run.

    Raises:
        DataError: the data set is not known or cannot be had.
        SettingError: the settings name a method, model, task or option that does not exist.
        FolderError: the folder holds a comparison with other settings.
        FolderInUseError: another process writes to the folder.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker that imports the caller's script
        raise SystemExit(_NO_GUARD)
    listener = listener or RunListener()
    methods = [parse_method(name) for name in (METHODS.usable() if settings.methods == ["all"] else settings.methods)]
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise SettingError(f"Every method should be named once, found {', '.join(names)}.")
    if settings.tune and settings.rates_from is not None:
        raise SettingError("rates_from takes the place of tuning, found both: leave out tune, or rates_from.")
    if dataset is None:
        dataset = load_data(settings, listener)
    settings = settings.suited_to(dataset)
    if "methods" not in settings.model_fields_set and not settings.tune and _static_weights(settings):
        methods, names = [*methods, METHODS[STATIC_WEIGHTS]], [*names, STATIC_WEIGHTS]
    settings = settings if settings.tune else settings.for_methods(names)
    if STATIC_WEIGHTS in names and not _weighs_statically(settings):
        listener.noted(
            "Method static weighs all tasks equally here, as equal weights do: give weights (static:weights=1-1-3), or "
            "search them with --tune --tune-trials 48."
        )
    comparison = _Comparison(
        settings, dataset, methods, ResultFolder(folder), jobs or workers_on(settings.device), listener, details
    )
    for method in methods:  # what is wrong with a model or method shows here, before anything is written
        comparison.learner(method)
    _note_large_tables(dataset, settings, listener)
    epochs, batch_size = settings.steps_per
    count_steps(dataset, epochs=epochs, batch_size=batch_size)
    if settings.tune:
        check_tunable(dataset)
    description = describe(settings, dataset, methods) | {"from_python": list(from_python)}
    with own_folder(folder):
        check_same_comparison(comparison.folder, description)
        rates = comparison.run(description)
        if speed:
            comparison.measure_speed(rates)


@dataclass(frozen=True)
class _Comparison:
    settings: Settings
    dataset: Dataset
    methods: Sequence[Method]
    folder: ResultFolder
    workers: int
    listener: RunListener
    details: bool

    def run(self, description: dict[str, Any]) -> Mapping[str, Rate]:
        """Tune and train; return the rate of each method."""
        rates = {method.name: starting_rate(self.settings, method.name) for method in self.methods}
        doubts = {name: found.doubt for name, found in rates.items() if found.doubt}
        chosen = {name: found.rate for name, found in rates.items()}
        searches = self._searches()
        again = dict.fromkeys(self._with_finalists(), _FINALIST_SEEDS * self.settings.tune_finalists)
        tuning = {
            name: found.trials * self.settings.tune_seeds + again.get(name, 0) for name, found in searches.items()
        }
        runs = Counter(tuning) + Counter(dict.fromkeys(chosen, self.settings.seeds))
        time_left = TimeLeft(runs, workers=self.workers)
        self.folder.write_plan(description | _as_planned(chosen, {} if self.settings.tune else doubts))
        if doubts and not self.settings.tune:
            said = "; ".join(dict.fromkeys(doubts.values()))
            self.listener.noted(f"Learning rates may not suit: {said}. --tune chooses one for each method.")
        if self.settings.tune:
            apart = {method.name for method in self.methods} - set(self._with_finalists())
            chosen = choose_rates(self._tune(searches, time_left), apart=apart)
            self.folder.write_plan(description | _as_planned(chosen, {}))
            self.folder.write_tuned(self._choice(chosen))
        todo = [Job(name, seed, *rate) for seed in range(self.settings.seeds) for name, rate in chosen.items()]
        add = self.folder.add_run if self.details else self._add_short_run
        self._do("Training", todo, self.folder.runs(), add, time_left)
        return chosen

    def learner(self, method: Method, rate: Rate | None = None) -> Learner:
        """Return a learner of a method, at the rate it starts with unless another is given."""
        rate = rate or starting_rate(self.settings, method.name).rate
        training = self.settings.training(lr=rate.lr, table_decay=rate.table_decay, seed=0)
        return Learner(self.dataset.schema, method_at(method.name, rate), training)

    @property
    def _tuning_seeds(self) -> range:
        return range(_TUNING_SEED, _TUNING_SEED + self.settings.tune_seeds)

    def _searches(self) -> dict[str, RateSearch]:
        """Return the search for the rate of each method; none without tuning."""
        if not self.settings.tune:
            return {}
        from equipoise.comparison.rate_search import RateSearch  # noqa: PLC0415 - optuna is slow to import

        tasks = self.dataset.schema.task_names
        return {method.name: RateSearch(self.settings, method, tasks) for method in self.methods}

    def _with_finalists(self) -> list[str]:
        """Return the methods but those with a model per task: each of their models has a best rate of its own."""
        return [method.name for method in self.methods if "a model per task" not in method.needs]

    def _tune(self, searches: Mapping[str, RateSearch], time_left: TimeLeft) -> list[Run]:
        """Make the runs of tuning, round by round, and return all of them."""
        finished, runs = self.folder.tuning_runs(), list[Run]()
        rounds = max(search.rounds for search in searches.values())
        for number in range(1, rounds + 1):
            asked = {name: search.ask() for name, search in searches.items()}
            jobs = [
                Job(name, seed, *rate) for seed in self._tuning_seeds for name, rates in asked.items() for rate in rates
            ]
            title = "Tuning" if rounds == 1 else f"Tuning, round {number} of {rounds}"
            runs += self._do(title, jobs, finished, self.folder.add_tuning_run, time_left)
            for name, search in searches.items():
                search.tell(scores_of(runs, name))
        if not self.settings.tune_finalists:
            return runs
        first = self._tuning_seeds.stop
        best = {name: best_rates(runs, name, self.settings.tune_finalists) for name in self._with_finalists()}
        jobs = [
            Job(name, seed, *rate)
            for seed in range(first, first + _FINALIST_SEEDS) for name, rates in best.items() for rate in rates
        ]  # fmt: skip
        return runs + self._do("Tuning, finalists", jobs, finished, self.folder.add_tuning_run, time_left)

    def _add_short_run(self, run: Run) -> None:
        self.folder.add_run(replace(without_details(run), random_groups=run.random_groups))

    def _choice(self, chosen: Mapping[str, Rate]) -> Choice:
        settings = self.settings.model_dump(mode="json")
        stated = {name: settings[name] for name in self.settings.model_fields_set}
        command = command_line("compare", stated)
        return Choice.of(settings, chosen, seeds=self._tuning_seeds, command=command)

    def _do(
        self,
        title: str,
        todo: Sequence[Job],
        finished: Sequence[Run],
        add: Callable[[Run], None],
        time_left: TimeLeft,
    ) -> list[Run]:
        """Return the run of each job: from ``finished`` if it is there, else trained now and added."""
        known = {Job.of(run): run for run in finished}
        done = {job: known[job] for job in todo if job in known}
        left = [job for job in dict.fromkeys(todo) if job not in done]
        for job in done:
            time_left.leave_out(job)
        self.listener.phase_started(title, len(todo), len(done))

        def on_steps(job: Job, steps: int, total: int) -> None:
            time_left.step(job, steps, total)
            self.listener.steps_done(job, steps, total, time_left.seconds())

        with closing(run_jobs(self.settings, self.dataset, left, self.workers, on_steps)) as results:
            for job, run in results:
                add(run)
                done[job] = run
                time_left.finish(job)
                self.listener.run_done(job, run, time_left.seconds())
        return [done[job] for job in todo]

    def measure_speed(self, rates: Mapping[str, Rate]) -> None:
        """Measure the throughput against equal weights and the memory of each method not measured before.

        Equal weights are measured against themselves, too, whether they are compared or not: how far two identical
        learners seem to differ says how busy the machine is.
        """
        equal = METHODS[EQUAL_WEIGHTS]
        measured = self.folder.throughput()
        wanted = {method.name: method for method in (equal, *self.methods)}
        left = [method for name, method in wanted.items() if name not in measured]
        self.listener.phase_started("Measuring throughput", len(wanted), len(wanted) - len(left))
        reference = self.learner(equal, rates.get(EQUAL_WEIGHTS))
        stream = self.dataset.train.batches(self.settings.steps_per[1])
        batches = [batch.to(reference.device) for batch in islice(stream, _THROUGHPUT_BATCHES)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MisplacedForkWarning)  # the trainings have said so
            for method in left:
                build = partial(self.learner, method, rates.get(method.name))
                speed = throughput_ratio(build(), reference, batches)
                measured[method.name] = speed.model_copy(update={"peak_memory": peak_memory(build, batches[0])})
                self.folder.write_throughput(measured)
                self.listener.part_done()


def _note_large_tables(dataset: Dataset, settings: Settings, listener: RunListener) -> None:
    if note := note_on_large_tables(dataset.schema, settings):
        listener.noted(note)


def _weighs_statically(settings: Settings) -> bool:
    """Return whether static weights are searched in this comparison, or were before it; a grid of rates has none."""
    if settings.tune:
        return settings.searches(STATIC_WEIGHTS)
    return bool(starting_rate(settings, STATIC_WEIGHTS).rate.options)


def _static_weights(settings: Settings) -> str:
    """Return the static weights that were searched under these very settings; empty if there are none."""
    found = starting_rate(settings, STATIC_WEIGHTS)
    return "" if found.doubt else found.rate.options


def starting_rate(settings: Settings, method: str, /) -> ChosenRate:
    """Return the rate of a method where it is not tuned now: the stated one, else the tuned one."""
    found = chosen_rate(settings.model_dump(mode="json"), method)
    if method not in settings.rates:
        decay = settings.decays.get(method, found.rate.table_decay)
        return found._replace(rate=found.rate._replace(table_decay=decay))
    return ChosenRate(Rate(settings.rates[method], settings.decays.get(method, found.rate.table_decay)), "")


def _check_rates_from(settings: Settings, method: str) -> None:
    """Refuse a method that was not tuned in the folder that the settings name for rates."""
    if settings.rates_from is None:
        return
    chosen = rates_in(settings.rates_from).chosen
    if not {method, method.partition(":")[0]} & chosen.keys():
        raise SettingError(
            f"rates_from: expected a rate of {method} in {settings.rates_from}, found those of {', '.join(chosen)}: "
            "tune it there, or name another method."
        )


def _as_planned(rates: Mapping[str, Rate], doubts: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of the plan that holds the rates."""
    return {
        "rates": {name: rate.lr for name, rate in rates.items()},
        "table_decays": {name: rate.table_decay for name, rate in rates.items()},
        "chosen_options": {name: rate.options for name, rate in rates.items() if rate.options},
        "rate_doubts": dict(doubts),
    }


def load_data(settings: Settings, listener: RunListener, /) -> Dataset:
    """Return the data set that the settings name or describe."""
    listener.phase_started(f"Loading {settings.data_name}", 1)
    dataset = data.load(settings.data, **settings.data_options)
    listener.part_done()
    return dataset


def train_into(
    folder: Path,
    settings: Settings,
    /,
    *,
    world: World | None = None,
    resume: bool = False,
    listener: RunListener | None = None,
    stop: Callable[[], bool] | None = None,
) -> Run:
    """Train the settings' method once; leave ``checkpoint`` and ``run.json`` in ``folder``, also if it diverged.

    A training that ends well leaves the ranker too, for :meth:`equipoise.serving.Ranker.load`. What an earlier training
    has left there is kept as ``checkpoint.before``, ``run.before.json`` and ``ranker.before``.

    Args:
        world: the processes that train together; the first of them writes.
        stop: see :func:`equipoise.training.train`.

    Raises:
        DataError, SettingError: the settings name something unknown, or cannot be resumed.
        FolderInUseError: another process writes to the folder.
        StoppedError: ``stop`` has said so.
        NonFiniteError: see :func:`equipoise.training.train`.
    """
    listener = listener or RunListener()
    method = parse_method(settings.method)
    with own_folder(folder, world):
        dataset = load_data(settings, listener)
        settings = settings.suited_to(dataset)
        _note_large_tables(dataset, settings, listener)
        _check_rates_from(settings, method.name)
        tuned = starting_rate(settings, method.name)
        if tuned.doubt and "lr" not in settings.model_fields_set:
            listener.noted(f"Learning rate {tuned.rate}, which may not suit: {tuned.doubt}. State one: --lr.")
        tuned_values = {"lr": tuned.rate.lr, "table_decay": tuned.rate.table_decay}
        settings = settings.model_copy(
            update={name: value for name, value in tuned_values.items() if name not in settings.model_fields_set}
        )
        if tuned.rate.options and "lr" not in settings.model_fields_set:
            listener.noted(f"Options chosen together with the learning rate: {tuned.rate.options}.")
            method = method_at(method.name, tuned.rate)
        job = Job(method.name, settings.seed, settings.lr, settings.table_decay)
        writes = world is None or world.rank == 0
        checkpoint = folder / "checkpoint"
        aside = ""
        if not resume and not (world is not None and world.restarted) and last_checkpoint(checkpoint) is not None:
            there = set_aside_folder(checkpoint)
            aside = f"{there}{', replacing older ones' if there.exists() else ''}"

        def show_steps(done: int, total: int) -> None:
            if done == 1 and aside:  # not before: settings that are refused move nothing
                listener.noted(f"Starting over; earlier checkpoints are moved to {aside}")
            if done == 1 and writes:  # what an earlier training has left
                if (folder / "run.json").exists():
                    (folder / "run.json").replace(folder / "run.before.json")
                set_ranker_aside(folder)
            listener.steps_done(job, done, total, None)

        trained: list[nn.Module] = []
        try:
            run = train(
                dataset, method, on_trained=trained.append if settings.sharding in {"ddp", "fsdp"} else None,
                world=world, checkpoint=checkpoint, resume=resume, on_step=show_steps, stop=stop,
                **settings.training().model_dump(),
            )  # fmt: skip
        except NonFiniteError as error:
            if writes:
                write_json(folder / "run.json", json.loads(error.run.to_json()))
            raise
        stated = settings.model_dump(mode="json")
        run.settings |= {name: stated[name] for name in ("data", "data_options")}
        if writes:
            write_json(folder / "run.json", json.loads(run.to_json()))
            if trained:
                Ranker.of_training(trained[0], dataset, method, run, settings).save(folder)
            else:
                listener.noted(
                    f"No ranker.json is written: sharding {settings.sharding} spreads the tables over the processes. "
                    "Predict with equipoise.training.Learner, or train with ddp or fsdp."
                )
        return run
