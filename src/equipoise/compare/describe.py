"""What a comparison's ``plan.json`` says, and whether a folder's plan is that of the same comparison."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from equipoise.compare.plan import Plan
from equipoise.data import Dataset
from equipoise.training import Method, SettingError

__all__ = ["FolderError", "check_folder", "cpu_name", "describe"]

_SAME_COMPARISON = (
    "data",
    "data_options",
    "model",
    "model_options",
    "epochs",
    "batch_size",
    "schedule",
    "loss_scale",
    "non_finite",
)


class FolderError(SettingError):
    """The folder holds another comparison: the message says what differs."""


def describe(plan: Plan, dataset: Dataset, methods: Sequence[Method]) -> dict[str, Any]:
    """The content of ``plan.json``, all but the learning rates."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
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
                "name": method.name, "label": method.label, "family": method.family,
                "summary": method.summary, "settings": method.settings(tasks),
            }
            for method in methods
        ],
        "seeds": list(range(plan.seeds)),
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "schedule": plan.schedule,
        "grid": list(plan.grid) if plan.tune else None,
        "rows": {name: len(split) for name, split in splits.items()},
        "label_rates": _label_rates(dataset),
        "options": plan.model_dump(mode="json"),
        "versions": {
            "equipoise": version("equipoise"), "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__},
    }  # fmt: skip


def check_folder(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse to add to runs that were made with other settings.

    Raises:
        FolderError: the folder's plan differs in more than methods, seeds and rates, or cannot be read.
    """
    path = folder / "plan.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
        before, settings = found["options"], {entry["name"]: entry["settings"] for entry in found["methods"]}
        before.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"Expected the plan of a comparison in {path}, found something else: remove it.") from error
    now = description["options"]
    differing = [
        f"{name}: {before.get(name)} there, {now[name]} here"
        for name in _SAME_COMPARISON
        if before.get(name) != now[name]
    ]
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


def cpu_name() -> str:
    """The processor's name, which Python itself does not tell on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
