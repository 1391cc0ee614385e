"""Checkpoints of a training: folders written whole or not at all, read without running code."""

from equipoise.training.checkpoint.folder import CheckpointError, last_checkpoint, place_aside

__all__ = ["CheckpointError", "last_checkpoint", "place_aside"]
