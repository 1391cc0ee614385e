"""Checkpoints of a training run: written whole or not at all, and refused by a run with other settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from equipoise.training.errors import SettingError

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]


class CheckpointError(SettingError):
    """A checkpoint cannot be resumed from: the message says what differs and what to do."""


def save_checkpoint(path: Path, settings: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the one before, which stays whole until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save({"settings": dict(settings), "state": dict(state)}, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_checkpoint(path: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """The state that was saved under the same settings.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, or it was made with other settings.
    """
    if not path.is_file():
        raise CheckpointError(f"Expected a checkpoint at {path}, found none: train without resume first.")
    try:
        saved = torch.load(path, weights_only=True)
        found, state = saved["settings"], saved["state"]
    except Exception as error:
        raise CheckpointError(
            f"Expected a checkpoint of equipoise at {path}, found a file that cannot be read as one "
            f"({error}): delete it, or name another."
        ) from error
    differing = [name for name in sorted({*settings, *found}) if settings.get(name) != found.get(name)]
    if differing:
        details = "; ".join(f"{name}: {found.get(name)} there, {settings.get(name)} here" for name in differing)
        raise CheckpointError(
            f"The checkpoint at {path} belongs to a run with other settings ({details}): "
            "use the same settings, or another file."
        )
    return dict(state)
