"""The content of a comparison's ``plan.json``, and the checks that compare it with a folder and with the data."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from equipoise.comparison.result_folder import FolderError, ResultFolder
from equipoise.comparison.results import LabelCount
from equipoise.data import Dataset
from equipoise.settings import Settings
from equipoise.training import Method, SettingError

__all__ = ["check_same_comparison", "check_tunable", "cpu_name", "describe"]


def describe(settings: Settings, dataset: Dataset, methods: Sequence[Method]) -> dict[str, Any]:
    """Return the content of ``plan.json``, without the learning rates."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    tasks = dataset.schema.task_names
    return {
        "dataset": dataset.name,
        "dataset_notes": list(dataset.notes),
        "best_ne": dataset.best_ne,
        "generated": bool(dataset.best_ne),  # the best NE is known for generated data alone
        "model": settings.model,
        "tasks": list(tasks),
        "methods": [
            {
                "name": method.name, "label": method.label, "family": method.family,
                "summary": method.summary, "settings": method.settings(tasks),
            }
            for method in methods
        ],
        "seeds": list(range(settings.seeds)),
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "schedule": settings.schedule,
        "grid": list(settings.grid) if settings.tune else None,
        "decay_grid": list(settings.decay_grid) if settings.tune else None,
        "rows": {name: len(split) for name, split in splits.items()},
        "label_rates": _label_rates(dataset),
        "label_counts": label_counts(dataset),
        "options": settings.model_dump(mode="json"),
        "versions": {
            "equipoise": version("equipoise"), "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__},
    }  # fmt: skip


def check_same_comparison(folder: ResultFolder, description: Mapping[str, Any]) -> None:
    """Refuse to add to runs that were made with other settings.

    Raises:
        FolderError: the folder's plan differs in more than methods, seeds and rates, or cannot be read.
    """
    if not folder.has_plan():
        return
    before = folder.plan()
    missing = Settings.of().of_comparison()  # settings newer than the folder had their defaults
    now = Settings.of(**description["options"]).of_comparison()
    now_counts = TypeAdapter(dict[str, dict[str, LabelCount]]).validate_python(description["label_counts"])
    differing = [
        f"{name}: {before.options.get(name, missing[name])} there, {now[name]} here"
        for name in now
        if before.options.get(name, missing[name]) != now[name]
    ]
    if before.rows != description["rows"]:
        differing.append(f"rows: {before.rows} there, {description['rows']} here")
    elif before.label_counts and before.label_counts != now_counts:
        differing.append("labels: as many rows there as here, but other labels")
    settings = {method.name: method.settings for method in before.methods}
    for entry in description["methods"]:
        there = settings.get(entry["name"], entry["settings"])
        if there != entry["settings"]:
            differing.append(f"method {entry['name']}: {there} there, {entry['settings']} here")
    if differing:
        raise FolderError(
            f"{folder.path} holds a comparison with other settings:\n  " + "\n  ".join(differing)
            + "\nName another folder with --out, or remove this one."
        )  # fmt: skip


def check_tunable(dataset: Dataset) -> None:
    """Refuse to tune where no task has both a positive and a negative label among the validation rows.

    Raises:
        SettingError: NE, by which rates are chosen, is not defined for any task.
    """
    counts = label_counts(dataset)["validation"]
    if not any(0 < task["positives"] < task["labelled"] for task in counts.values()):
        found = ", ".join(f"{name}: {task['positives']} of {task['labelled']}" for name, task in counts.items())
        raise SettingError(
            f"Rates cannot be chosen on the validation rows: each task has labels of one class only there (positives: "
            f"{found}). Use more rows, or give the rates with --rate instead of --tune."
        )


def label_counts(dataset: Dataset) -> dict[str, dict[str, dict[str, int]]]:
    """Return, for each split and task, how many rows are labelled and how many of them are positive."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {
        name: {
            task: {"labelled": int(column.isfinite().sum()), "positives": int((column > 0).sum())}
            for task, column in zip(dataset.schema.task_names, split.labels.unbind(1), strict=True)
        }
        for name, split in splits.items()
    }


def _label_rates(dataset: Dataset) -> dict[str, dict[str, float]]:
    labels = dataset.train.labels
    present = labels.isnan().logical_not()
    rates = labels.nanmean(0).nan_to_num(nan=0.0).tolist()
    labelled = present.float().mean(0).tolist()
    return {
        task: {"rate": rate, "labelled": share}
        for task, rate, share in zip(dataset.schema.task_names, rates, labelled, strict=True)
    }


def cpu_name() -> str:
    """Return the processor's name, which Python does not tell on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
