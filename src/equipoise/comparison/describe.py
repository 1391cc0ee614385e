"""The content of a comparison's ``plan.json``, and the checks that compare it with a folder and with the data."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import TypeAdapter

from equipoise import __version__
from equipoise.comparison.result_folder import FolderError, ResultFolder
from equipoise.comparison.results import Groups, LabelCount, NaturalRate, PlannedTask
from equipoise.data import Dataset
from equipoise.measuring import cpu_name
from equipoise.ranking.metrics import grouped_areas
from equipoise.ranking.predictions import biased_tasks
from equipoise.schema import Schema
from equipoise.settings import Settings
from equipoise.training import Method, SettingError

__all__ = ["check_same_comparison", "check_tunable", "describe"]


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
        "about_tasks": {
            task.name: PlannedTask(
                description=task.description, kind=task.kind, loss=task.loss, after=task.after, over=task.over
            ).model_dump()
            for task in dataset.schema.tasks
        },
        "natural_rate": _natural_rate(dataset.schema),
        "groups": _groups(dataset) if dataset.group else None,
        "user_groups": list(dataset.user_groups),
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
        "fingerprint": dataset.fingerprint(),
        "options": settings.model_dump(mode="json"),
        "versions": {
            "equipoise": __version__, "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__,
            "accelerator": _accelerator(torch.device(settings.device)),
        },
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
    elif before.fingerprint and before.fingerprint != description["fingerprint"]:
        differing.append("data: the same labels there as here, but other features")
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
    """Refuse to tune where no task has two different labels among the validation rows.

    Raises:
        SettingError: NE, by which rates are chosen, is not defined for any task.
    """
    labels = dataset.validation.labels
    least, most = labels.nan_to_num(nan=torch.inf).amin(0), labels.nan_to_num(nan=-torch.inf).amax(0)
    if not bool((least < most).any()):
        found = ", ".join(
            f"{name}: {count['labelled']} labelled"
            + ("" if count["positives"] is None else f", {count['positives']} positive")
            for name, count in label_counts(dataset)["validation"].items()
        )
        raise SettingError(
            f"Rates cannot be chosen on the validation rows: the labels of each task are all the same there ({found}). "
            "Use more rows, or give the rates with --rate instead of --tune."
        )


def label_counts(dataset: Dataset) -> dict[str, dict[str, dict[str, int | None]]]:
    """Return, for each split and task, how many rows are labelled and how many of them are positive."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {
        name: {
            task.name: {
                "labelled": int(column.isfinite().sum()),
                "positives": int((column > 0).sum()) if task.binary else None,
            }
            for task, column in zip(dataset.schema.tasks, split.labels.unbind(1), strict=True)
        }
        for name, split in splits.items()
    }


def _accelerator(device: torch.device) -> str:
    """Return the name of an accelerator, "" for a CPU."""
    if device.type == "cpu":
        return ""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _natural_rate(schema: Schema) -> dict[str, Any] | None:
    sampled = schema.sampled
    if sampled is None:
        return None
    return NaturalRate(task=sampled.task, rate=sampled.rate, biased=list(biased_tasks(schema))).model_dump()


def _groups(dataset: Dataset) -> dict[str, Any]:
    """Count the groups of the test rows that have both classes of each binary task, and those that do not."""
    test = dataset.test
    keys = test.keys[dataset.group].double()
    weight = torch.ones_like(keys) if test.importance is None else test.importance.double()
    found = {
        task.name: grouped_areas(torch.zeros_like(keys), labels.double(), weight, keys)
        for task, labels in zip(dataset.schema.tasks, test.labels.unbind(1), strict=True)
        if task.binary
    }
    return Groups(
        key=dataset.group,
        counted={name: len(areas.areas) for name, areas in found.items()},
        left_out={name: areas.left_out for name, areas in found.items()},
    ).model_dump()


def _label_rates(dataset: Dataset) -> dict[str, dict[str, float]]:
    labels = dataset.train.labels
    present = labels.isnan().logical_not()
    rates = labels.nanmean(0).nan_to_num(nan=0.0).tolist()
    labelled = present.float().mean(0).tolist()
    return {
        task: {"rate": rate, "labelled": share}
        for task, rate, share in zip(dataset.schema.task_names, rates, labelled, strict=True)
    }
