"""Training runs as jobs, made here or by worker processes with the same results."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch

from equipoise.comparison.tuned_rates import Rate, rate_of
from equipoise.data import Dataset
from equipoise.errors import MisplacedForkWarning
from equipoise.methods import METHODS, Method, parse_method
from equipoise.registry import registered, restore
from equipoise.settings import Settings
from equipoise.training import NonFiniteError, Run, SettingError, train

__all__ = ["Job", "OnSteps", "RunListener", "cores", "method_at", "run_jobs", "workers_on"]

_POLL_SECONDS = 0.1
_REPORT_EVERY = 10  # steps between two messages of a worker


@dataclass(frozen=True)
class Job:
    """One training run of a comparison."""

    method: str
    seed: int
    lr: float
    table_decay: float = 0.0
    options: str = ""

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the job that gives this run."""
        return cls(run.method, run.seed, *rate_of(run))

    @property
    def rate(self) -> Rate:
        """The rate, with options of the method chosen with it."""
        return Rate(self.lr, self.table_decay, self.options)


class RunListener:
    """Receives the progress of a training or a comparison; this one does nothing."""

    def noted(self, sentence: str, /) -> None:
        """Tell the user a sentence that they should know."""

    def phase_started(self, title: str, parts: int, done: int = 0, /) -> None:
        """Note that a phase of so many parts begins, of which some are done."""

    def part_done(self) -> None:
        """Note that one more part of a phase without runs is done."""

    def steps_done(self, job: Job, done: int, total: int, seconds_left: float | None, /) -> None:
        """Note the steps that a run has made, and the seconds left for all runs, None while unknown."""

    def run_done(self, job: Job, run: Run, seconds_left: float | None, /) -> None:
        """Note that a run is done and on disk, and the seconds left for the others."""


OnSteps = Callable[[Job, int, int], None]
"""Called with a job, how many of its steps are done, and how many it has."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_on(device: str, /) -> int:
    """Return how many runs train at a time unless the user says so: one per core, and one on an accelerator.

    Example:
        >>> workers_on("cuda")
        1
    """
    return cores() if torch.device(device).type == "cpu" else 1


def run_jobs(
    settings: Settings, dataset: Dataset, jobs: Sequence[Job], workers: int, on_steps: OnSteps
) -> Generator[tuple[Job, Run], None, None]:
    """Yield results as they come, from this process or from ``workers`` others.

    The workers read the data set from a temporary file that they map into memory, so that all share one copy.

    Every run uses one thread wherever it runs, since the order in which threads add up changes the last bits.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        with _one_thread():
            for job in jobs:
                yield job, _run(settings, dataset, job, partial(on_steps, job))
    else:
        yield from _in_processes(settings, dataset, jobs, workers, on_steps)


def _run(settings: Settings, dataset: Dataset, job: Job, on_step: Callable[[int, int], None]) -> Run:
    try:
        run = train(
            dataset,
            method_at(job.method, job.rate),
            on_step=on_step,
            **settings.training(lr=job.lr, table_decay=job.table_decay, seed=job.seed).model_dump(),
        )
    except NonFiniteError as error:
        run = error.run  # that it diverged is a result too
    run.method, run.options = job.method, job.options
    return run


def method_at(name: str, rate: Rate, /) -> Method:
    """Return the method of that name, with the options that tuning has chosen with its rate.

    Example:
        >>> method_at("multibalance:beta=0.3", Rate(0.01, options="gamma=0.1")).options
        {'beta': 0.3, 'gamma': 0.1}
    """
    method = parse_method(name)
    _, options = METHODS.parse(f"method:{rate.options}") if rate.options else ("", {})
    return method.with_options(**options)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _StoppedError(Exception):
    """The main process wants its workers to end."""


def _in_processes(
    settings: Settings, dataset: Dataset, jobs: Sequence[Job], workers: int, on_steps: OnSteps
) -> Iterator[tuple[Job, Run]]:
    with TemporaryDirectory(prefix="equipoise-") as folder:
        file = Path(folder) / "dataset.pt"
        torch.save(dataset, file)
        yield from _in_pool(settings, file, jobs, workers, on_steps)


def _in_pool(
    settings: Settings, dataset: Path, jobs: Sequence[Job], workers: int, on_steps: OnSteps
) -> Iterator[tuple[Job, Run]]:
    context = multiprocessing.get_context("spawn")
    begun, stop, messages = context.Event(), context.Event(), context.Queue()
    waiting = list(reversed(jobs))
    running: dict[Future[Run], Job] = {}
    warned: set[str] = set()
    initial = (_Worker(settings, dataset, stop, messages), begun, registered())
    with ProcessPoolExecutor(workers, context, _start_worker, initial) as pool:
        try:
            while waiting or running:
                # no more than the workers can do, so that nothing is left in the queue when the user stops
                while waiting and len(running) < workers:
                    job = waiting.pop()
                    running[pool.submit(_work, job)] = job
                finished, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                while not messages.empty():
                    match messages.get():
                        case str(warning) if warning not in warned:
                            warned.add(warning)
                            warnings.warn(warning, MisplacedForkWarning, stacklevel=2)
                        case job, done, total if job in running.values():  # a message may come after the result
                            on_steps(job, done, total)
                for future in finished:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            if not begun.is_set():
                raise SettingError(
                    "The worker processes ended before they began. In a script, put the call under "
                    '`if __name__ == "__main__":`, since each worker imports the script. Or use jobs=1.'
                ) from error
            raise SettingError(
                "A worker process ended unexpectedly, usually because memory ran out; finished runs are kept. "
                f"Run the same command again with fewer jobs than {workers}."
            ) from error
        finally:
            stop.set()


@dataclass
class _Worker:
    settings: Settings
    file: Path
    stop: Event
    messages: Queue[tuple[Job, int, int] | str]  # a job's steps, or what a warning about a fork says

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, read with the first job: an error then fails that job, while one at start breaks the pool."""
        dataset: Dataset = torch.load(self.file, mmap=True, weights_only=False)  # the main process wrote it just now
        return dataset


_worker: _Worker  # what this worker process needs for every job


def _start_worker(worker: _Worker, begun: Event, entries: dict[str, dict[str, bytes]]) -> None:
    global _worker  # noqa: PLW0603 - a process pool hands its workers nothing else
    begun.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which sets `stop`
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    restore(entries)
    _worker = worker
    warnings.showwarning = partial(_hand_over, warnings.showwarning)


def _hand_over(others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Leave a warning about the user's model to the main process, which shows it once for all workers."""
    if issubclass(category, MisplacedForkWarning):
        _worker.messages.put(str(message))
    else:
        others(message, category, *place)


def _end_with_parent() -> None:
    """End this worker when the main process is gone; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: Job) -> Run:
    def on_step(done: int, total: int) -> None:
        if _worker.stop.is_set():
            raise _StoppedError
        if done == 1 or done % _REPORT_EVERY == 0 or done == total:
            _worker.messages.put((job, done, total))

    return _run(_worker.settings, _worker.dataset, job, on_step)
