"""Checkpoints of a training: folders written whole or not at all, read without running code."""

from equipoise.training.checkpoint.folder import (
    CheckpointError,
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
    set_aside_folder,
)

__all__ = ["CheckpointError", "last_checkpoint", "load_checkpoint", "save_checkpoint", "set_aside_folder"]
