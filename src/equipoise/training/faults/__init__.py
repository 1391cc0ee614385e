"""Faults of a training: values that are not finite, requests to stop, a folder that another process writes to."""

from equipoise.training.faults.folder_owner import FolderInUseError, own_folder
from equipoise.training.faults.interruptions import (
    StoppedError,
    TerminatedError,
    interrupted_by_sigterm,
    listening,
)
from equipoise.training.faults.non_finite import NonFiniteError

__all__ = [
    "FolderInUseError",
    "NonFiniteError",
    "StoppedError",
    "TerminatedError",
    "interrupted_by_sigterm",
    "listening",
    "own_folder",
]
