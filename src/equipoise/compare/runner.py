"""A comparison from plan to records: tune, train every method with every seed, measure speed; stop and go on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from equipoise import data
from equipoise.compare.jobs import Job, Watch, run_jobs
from equipoise.compare.plan import Plan
from equipoise.compare.records import append_run, read_runs, write_json
from equipoise.compare.throughput import peak_memory, throughput_ratio
from equipoise.data import Dataset, Split
from equipoise.training import Learner, Run, SettingError, train
from equipoise.training.methods import METHODS, Method, parse_method

__all__ = ["FolderError", "compare", "train_into"]

_TUNING_SEED = 1000  # the first seed of tuning, so that no seed both chooses a rate and reports a result
_THROUGHPUT_BATCHES = 20
_SAME_COMPARISON = ("data", "data_options", "model", "model_options", "epochs", "batch_size", "loss_scale")


class FolderError(SettingError):
    """The folder holds another comparison: the message says what differs."""


def compare(plan: Plan, folder: Path, /, *, jobs: int = 1, watch: Watch | None = None) -> None:
    """Train every method with every seed, and leave plan, runs and throughput as JSON in ``folder``.

    Runs that the folder already holds are kept; more methods or seeds can be added to it. Whatever ends this early
    leaves every finished run there.

    Args:
        jobs: how many worker processes train; the results do not depend on it.
        watch: is told how far it is.

    Raises:
        DataError, MethodError, ValueError: the plan names what there is not.
        FolderError: the folder holds a comparison with other settings.
    """
    watch = watch or Watch()
    methods = [parse_method(name) for name in plan.methods]
    dataset = data.load(plan.data, **plan.data_options)
    for method in methods:  # what is wrong with a model or method shows here, before anything is written
        _learner(plan, dataset, method)
    if len(dataset.train) < plan.batch_size:
        raise ValueError(
            f"A training split must hold at least one batch of {plan.batch_size} rows, found {len(dataset.train)}: "
            "lower batch_size or load more rows."
        )
    description = _describe(plan, dataset, methods)
    _check_folder(folder, description)
    folder.mkdir(parents=True, exist_ok=True)
    rates = {method.name: plan.rate(method.name) for method in methods}
    write_json(folder / "plan.json", description | {"rates": rates})
    if plan.tune:
        rates |= _tune(plan, dataset, folder, jobs, watch)
        write_json(folder / "plan.json", description | {"rates": rates})
    todo = [Job("run", name, seed, rates[name]) for seed in range(plan.seeds) for name in rates]
    _run(plan, dataset, todo, folder / "runs.jsonl", jobs, watch)
    write_json(folder / "throughput.json", _throughput(plan, dataset, methods, watch))


def _tune(plan: Plan, dataset: Dataset, folder: Path, jobs: int, watch: Watch) -> dict[str, float]:
    """Each method's rate: the one of the grid with the lowest mean validation NE over the tuning seeds."""
    seeds = range(_TUNING_SEED, _TUNING_SEED + plan.tune_seeds)
    todo = [Job("tune", name, seed, lr) for seed in seeds for name in plan.methods for lr in plan.grid]
    runs = _run(plan, dataset, todo, folder / "tuning.jsonl", jobs, watch)
    chosen = {}
    for name in plan.methods:
        reached = {
            lr: sum(runs[Job("tune", name, seed, lr)].mean_validation_ne for seed in seeds) for lr in plan.grid
        }
        chosen[name] = min(reached, key=reached.__getitem__)
    return chosen


def _run(
    plan: Plan, dataset: Dataset, todo: Sequence[Job], path: Path, workers: int, watch: Watch
) -> dict[Job, Run]:
    """Every job's run, from the file where it holds it, else trained now and added to it."""
    known = {(run.method, run.seed, run.lr): run for run in read_runs(path)}
    done = {job: known[key] for job in todo if (key := (job.method, job.seed, job.lr)) in known}
    left = [job for job in todo if job not in done]
    watch.phase("Tuning" if path.stem == "tuning" else "Training", len(todo), len(done))
    for job, run in run_jobs(plan, dataset, left, workers, watch):
        append_run(path, run, phase=job.phase)
        done[job] = run
        watch.finish(job, run)
    return done


def _throughput(plan: Plan, dataset: Dataset, methods: Sequence[Method], watch: Watch) -> dict[str, Any]:
    """Every method's throughput against equal weights, and the memory of its steps."""
    watch.phase("Measuring throughput", len(methods))
    batches = list(islice(dataset.train.batches(plan.batch_size), _THROUGHPUT_BATCHES))
    reference = _learner(plan, dataset, METHODS["equal"])
    measured = {}
    for method in methods:
        build = partial(_learner, plan, dataset, method)
        ratio = throughput_ratio(build(), reference, batches)
        measured[method.name] = ratio | {"peak_memory_bytes": peak_memory(build, batches[0])}
        watch.advance()
    return measured


def _learner(plan: Plan, dataset: Dataset, method: Method) -> Learner:
    return Learner(
        dataset.schema, method,
        model=plan.model, model_options=plan.model_options, lr=plan.rate(method.name), seed=0,
        loss_scale=plan.loss_scale,
    )  # fmt: skip


def _describe(plan: Plan, dataset: Dataset, methods: Sequence[Method]) -> dict[str, Any]:
    tasks = dataset.schema.task_names
    return {
        "dataset": dataset.name,
        "dataset_notes": list(dataset.notes),
        "best_ne": dataset.best_ne,
        "generated": bool(dataset.best_ne),  # the truth is known where it was made
        "model": plan.model,
        "tasks": list(tasks),
        "methods": [
            {
                "name": method.name, "label": method.label, "family": method.family, "summary": method.summary,
                "settings": method.settings(tasks),
            }
            for method in methods
        ],
        "seeds": list(range(plan.seeds)),
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "grid": list(plan.grid) if plan.tune else None,
        "rows": {name: len(split) for name, split in _splits(dataset).items()},
        "label_rates": _label_rates(dataset),
        "options": plan.model_dump(mode="json"),
        "versions": {"equipoise": version("equipoise"), "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "torch": torch.__version__},
    }  # fmt: skip


def _check_folder(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse to add to runs that were made with other settings."""
    path = folder / "plan.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
        before, settings = found["options"], {entry["name"]: entry["settings"] for entry in found["methods"]}
    except (ValueError, KeyError, TypeError) as error:
        raise FolderError(f"Expected the plan of a comparison in {path}, found something else: remove it.") from error
    now = description["options"]
    differing = [f"{name}: {before.get(name)} there, {now[name]} here" for name in _SAME_COMPARISON if before.get(name) != now[name]]
    if found.get("rows") != description["rows"]:
        differing.append(f"rows: {found.get('rows')} there, {description['rows']} here")
    for entry in description["methods"]:
        there = settings.get(entry["name"], entry["settings"])
        if there != entry["settings"]:
            differing.append(f"method {entry['name']}: {there} there, {entry['settings']} here")
    if differing:
        raise FolderError(
            f"{folder} holds a comparison with other settings:\n  " + "\n  ".join(differing)
            + "\nName another folder with --out, or remove this one."
        )  # fmt: skip


def _label_rates(dataset: Dataset) -> dict[str, dict[str, float]]:
    labels = dataset.train.labels
    present = labels.isnan().logical_not()
    rates = labels.nanmean(0).nan_to_num(nan=0.0).tolist()
    labelled = present.float().mean(0).tolist()
    return {
        task: {"rate": rate, "labelled": share}
        for task, rate, share in zip(dataset.schema.task_names, rates, labelled, strict=True)
    }


def _splits(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def _cpu() -> str:
    """The processor's name, which Python itself does not tell on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def train_into(
    folder: Path,
    plan: Plan,
    /,
    *,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Train the plan's one method once; ``checkpoint.pt`` and ``run.json`` in ``folder`` hold what came of it.

    Raises:
        DataError, SettingError: the plan names what there is not, or cannot be resumed.
    """
    method = parse_method(plan.methods[0])
    dataset = data.load(plan.data, **plan.data_options)
    run = train(
        dataset, method,
        model=plan.model, model_options=plan.model_options, lr=plan.rate(method.name), epochs=plan.epochs,
        batch_size=plan.batch_size, seed=seed, loss_scale=plan.loss_scale, device=device,
        checkpoint=folder / "checkpoint.pt", resume=resume, on_progress=on_progress,
    )  # fmt: skip
    write_json(folder / "run.json", json.loads(run.to_json()))
    return run
