"""An audit from settings to its folder: a small comparison, a look at gradients, a search for static weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from equipoise.comparison.audit.probe import Probe, probe
from equipoise.comparison.audit.search import search_weights
from equipoise.comparison.jobs import Job, RunListener, run_jobs
from equipoise.comparison.result_folder import FolderError, ResultFolder, write_json
from equipoise.comparison.results import EQUAL_WEIGHTS, SINGLE_TASK, Results
from equipoise.comparison.runner import load_data, run_comparison, starting_rate
from equipoise.comparison.tuned_rates import Rate
from equipoise.comparison.tuning import choose_rates, mean_ne, tasks_with_ne
from equipoise.data import Dataset
from equipoise.errors import SettingError
from equipoise.methods import parse_method
from equipoise.settings import Settings
from equipoise.training import Learner, Run, own_folder
from equipoise.training.compatibility import IncompatibleError

__all__ = ["Audit", "Trial", "audit", "read_audit"]

AUDITED: Final = (EQUAL_WEIGHTS, SINGLE_TASK, "multibalance", "pub")
"""The methods of the small comparison."""

_TUNING_SEED: Final = 1000
_RATES: Final = (1e-3, 3e-3, 1e-2)
_DECAYS: Final = (0.0, 1.0)
_WORST: Final = 1e6  # the score of a training that diverged


class Trial(BaseModel):
    """Static weights of the tasks' losses, and the mean validation NE of one training with them."""

    weights: dict[str, float]
    score: float


class Audit(BaseModel):
    """The content of ``audit.json``.

    Attributes:
        probes: looks at the gradients in one training with equal weights.
        trials: the trials of the search for static weights, on a seed of its own.
        weights: the best of them.
        confirmed: runs with these weights on the seeds of the comparison, as :meth:`Run.to_json` writes them.
        rate_tuned: whether the learning rate was chosen by this audit, the same one for all methods.
    """

    probes: list[Probe] = []
    trials: list[Trial] = []
    weights: dict[str, float] = {}
    confirmed: list[dict[str, Any]] = []
    rate_tuned: bool = False

    def confirmed_runs(self) -> list[Run]:
        """Return the runs with the best static weights."""
        return [Run.from_json(json.dumps(run)) for run in self.confirmed]


def audit(
    settings: Settings,
    folder: Path,
    /,
    *,
    seeds: int = 5,
    trials: int = 16,
    dataset: Dataset | None = None,
    from_python: Sequence[str] = (),
    jobs: int | None = None,
    listener: RunListener | None = None,
) -> None:
    """Audit a data set and model; leave ``audit.json`` and the small comparison ``runs/`` in ``folder``.

    Equal weights, one model per task, MultiBalance and PUB train with each seed. Where no rate was tuned for the data
    and model, equal weights choose one of six on validation rows, and all methods take it. Run it again to go on.

    Args:
        seeds: trainings of each method.
        trials: trainings of the search for static weights; the best is confirmed with all seeds.
        dataset: taken in place of the one that the settings name.
        from_python: names of settings whose values a caller gave as Python objects.
        jobs: the number of worker processes, as many as there are cores if None.

    Raises:
        DataError, SettingError: as :func:`equipoise.comparison.run_comparison`.
        FolderError: the folder holds an audit of other settings.
    """
    listener = listener or RunListener()
    dataset = dataset if dataset is not None else load_data(settings, listener)
    if len(dataset.schema.tasks) < 2:
        raise SettingError(f"An audit needs at least two tasks, found {', '.join(dataset.schema.task_names)}.")
    settings = settings.suited_to(dataset)
    methods = _methods(settings, dataset, listener)
    settings = settings.for_methods(methods)
    with own_folder(folder):
        auditor = _Auditor(settings, dataset, methods, folder, listener, _begun(folder))
        rates = auditor.rates()
        stated = {name: getattr(settings, name) for name in settings.model_fields_set}
        stated |= {"seeds": seeds, "methods": methods}
        stated |= {"rates": {name: rate.lr for name, rate in rates.items()}}
        stated |= {"decays": {name: rate.table_decay for name, rate in rates.items()}}
        planned = Settings.of(**stated).suited_to(dataset)
        run_comparison(
            planned,
            folder / "runs",
            dataset=dataset,
            from_python=from_python,
            jobs=jobs,
            listener=listener,
            speed=False,
        )
        auditor.look_at_gradients(rates[EQUAL_WEIGHTS])
        auditor.search_weights(rates[EQUAL_WEIGHTS], trials)
        auditor.confirm_weights(rates[EQUAL_WEIGHTS], seeds)


@dataclass(frozen=True)
class _Auditor:
    """The parts of an audit beside its comparison; each keeps what it finds at once."""

    settings: Settings
    dataset: Dataset
    methods: Sequence[str]
    folder: Path
    listener: RunListener
    found: Audit

    def rates(self) -> dict[str, Rate]:
        """Return a rate for each method: the stated or tuned one, else one that equal weights choose here for all."""
        known = {name: starting_rate(self.settings, name) for name in self.methods}
        if EQUAL_WEIGHTS in self.settings.rates or not known[EQUAL_WEIGHTS].doubt:
            return {name: rate.rate for name, rate in known.items()}
        file = self.folder / "rate.json"
        if not file.is_file():
            todo = [Job(EQUAL_WEIGHTS, _TUNING_SEED, lr, decay) for lr in _RATES for decay in _DECAYS]
            self.listener.phase_started("Choosing a learning rate", len(todo))
            runs = self._train(self.settings, todo)
            write_json(file, choose_rates(runs)[EQUAL_WEIGHTS]._asdict())
        self.found.rate_tuned = True
        chosen = TypeAdapter(Rate).validate_json(file.read_text())
        return dict.fromkeys(self.methods, chosen)

    def look_at_gradients(self, rate: Rate) -> None:
        """Probe one training with equal weights."""
        if not self.found.probes:
            self.listener.phase_started("Looking at gradients", 1)
            training = self.settings.training(lr=rate.lr, table_decay=rate.table_decay, seed=_TUNING_SEED)
            self.found.probes = probe(self.dataset, training)
            self._keep()
            self.listener.part_done()

    def search_weights(self, rate: Rate, trials: int) -> None:
        """Search static weights of the losses, on a seed of its own."""
        trained = min(trials, len(self.found.trials))
        self.listener.phase_started("Searching static weights", trials, trained)

        def score(weights: Mapping[str, float]) -> float:
            (run,) = self._train(self._weighted(weights), [Job(EQUAL_WEIGHTS, _TUNING_SEED, *rate)])
            value = mean_ne([run], tasks_with_ne([run]))
            return _WORST if value is None else min(value, _WORST)

        def keep(weights: Mapping[str, float], value: float) -> None:
            self.found.trials.append(Trial(weights=dict(weights), score=value))
            self._keep()

        before = [(trial.weights, trial.score) for trial in self.found.trials]
        best = search_weights(self.dataset.schema.task_names, score, trials=trials, finished=before, on_trial=keep)
        if best != self.found.weights:
            self.found.weights, self.found.confirmed = best, []
            self._keep()

    def confirm_weights(self, rate: Rate, seeds: int) -> None:
        """Train with the best static weights on the seeds of the comparison, which did not choose them."""
        done = {run.seed for run in self.found.confirmed_runs()}
        left = [Job(EQUAL_WEIGHTS, seed, *rate) for seed in range(seeds) if seed not in done]
        self.listener.phase_started("Confirming static weights", seeds, seeds - len(left))
        for job in left:
            (run,) = self._train(self._weighted(self.found.weights), [job])
            self.found.confirmed.append(json.loads(run.to_json()))
            self._keep()

    def _weighted(self, weights: Mapping[str, float]) -> Settings:
        return self.settings.model_copy(update={"loss_scale": dict(weights)})

    def _train(self, settings: Settings, jobs: Sequence[Job]) -> list[Run]:
        def on_steps(job: Job, done: int, total: int) -> None:
            self.listener.steps_done(job, done, total, None)

        runs = []
        with closing(run_jobs(settings, self.dataset, jobs, 1, on_steps)) as results:
            for job, run in results:
                runs.append(run)
                self.listener.run_done(job, run, None)
        return runs

    def _keep(self) -> None:
        write_json(self.folder / "audit.json", self.found.model_dump(mode="json"))


def _methods(settings: Settings, dataset: Dataset, listener: RunListener) -> list[str]:
    """Return the methods to train: those that go with the recipe; the rest is noted.

    Raises:
        SettingError: the model cannot be trained, found here before anything is.
    """
    found = []
    for name in AUDITED:
        try:
            Learner(dataset.schema, parse_method(name), settings.training(seed=0))
        except IncompatibleError as error:
            if name == EQUAL_WEIGHTS:
                raise
            listener.noted(f"{name} is left out. {error}")
        else:
            found.append(name)
    return found


def read_audit(folder: Path, /) -> tuple[Audit, Results]:
    """Return the audit in a folder, and its small comparison.

    Raises:
        FolderError: the folder holds no audit, or a file in it is damaged.
    """
    if not (folder / "audit.json").is_file():
        raise FolderError(f"Expected an audit in {folder}, found no audit.json: run `equipoise audit` first.")
    return _begun(folder), ResultFolder(folder / "runs").results()


def _begun(folder: Path) -> Audit:
    file = folder / "audit.json"
    if not file.is_file():
        return Audit()
    try:
        return Audit.model_validate_json(file.read_text())
    except ValueError as error:
        raise FolderError(f"{file} is damaged ({str(error).splitlines()[0]}): remove it to audit again.") from error
