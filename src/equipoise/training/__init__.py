"""Training one model, or one model per task, with any of the methods."""

from equipoise.errors import SettingError
from equipoise.methods import METHODS, Method, MethodError, parse_method
from equipoise.training.checkpoint.folder import CheckpointError
from equipoise.training.compatibility import IncompatibleError
from equipoise.training.faults import FolderInUseError, NonFiniteError, StoppedError, listening, own_folder
from equipoise.training.learner import Learner
from equipoise.training.loop import count_steps, train
from equipoise.training.ranks.parallel import parallelize
from equipoise.training.ranks.world import LostRanksError, World, launched
from equipoise.training.run import Run

__all__ = [
    "METHODS",
    "CheckpointError",
    "FolderInUseError",
    "IncompatibleError",
    "Learner",
    "LostRanksError",
    "Method",
    "MethodError",
    "NonFiniteError",
    "Run",
    "SettingError",
    "StoppedError",
    "World",
    "count_steps",
    "launched",
    "listening",
    "own_folder",
    "parallelize",
    "parse_method",
    "train",
]
